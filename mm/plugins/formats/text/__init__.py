"""Plain documents: `{"text": "..."}`."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has a text."""
    return "text" in row


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `text`."""
    yield FormatSpec(
        name="text",
        summary='Documents: {"text": "..."}.',
        target="mm.plugins.formats.text.format:TextFormat",
        row="text",
        recognise=recognise,
        example={"text": "..."},
    )
