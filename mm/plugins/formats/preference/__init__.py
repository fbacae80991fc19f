"""Two answers of which one is preferred."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import is_preference


def recognise(row: Mapping[str, Any]) -> bool:
    """Whether the row has both answers."""
    return is_preference(row)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The part."""
    yield FormatSpec(
        name="preference",
        summary="Preferences: chosen and rejected, each a conversation or an answer to the prompt beside them.",
        target="mm.plugins.formats.preference.format:PreferenceFormat",
        row="preference",
        recognise=recognise,
    )
