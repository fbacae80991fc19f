"""Conversations in the shape of the glaive function-calling data: one text with USER, ASSISTANT and FUNCTION RESPONSE."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has a system text, and a conversation as one text."""
    return "system" in row and isinstance(row.get("chat"), str)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `glaive`."""
    yield FormatSpec(
        name="glaive",
        summary="Glaive: system with the tools, chat as one text of USER, ASSISTANT and FUNCTION RESPONSE.",
        target="mm.plugins.formats.glaive.format:GlaiveFormat",
        row="chat",
        recognise=recognise,
        example={"system": "...", "chat": "USER: ...\n\nASSISTANT: ..."},
    )
