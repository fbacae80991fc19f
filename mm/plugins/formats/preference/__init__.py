"""Pairs of answers, one of them preferred."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import is_preference


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has a chosen and a rejected answer."""
    return is_preference(row)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `preference`."""
    yield FormatSpec(
        name="preference",
        summary="Preferences: chosen and rejected, each a conversation, or an answer to the row's prompt.",
        target="mm.plugins.formats.preference.format:PreferenceFormat",
        row="preference",
        recognise=recognise,
        example={"prompt": "...", "chosen": "a better answer", "rejected": "a worse one"},
    )
