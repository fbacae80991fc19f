"""Conversations in MiniMind's two shapes and in OpenAI's."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec


def recognise(row: Mapping[str, Any]) -> bool:
    """Whether the row is a conversation of turns with a role (ShareGPT's turns say `from` instead)."""
    if "conversations" not in row and "messages" not in row:
        return False
    turns = row.get("conversations", row.get("messages"))
    first = turns[0] if isinstance(turns, list) and turns else None
    return not (isinstance(first, dict) and "from" in first and "role" not in first)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The part."""
    yield FormatSpec(
        name="chat",
        summary="Conversations: MiniMind's conversations and OpenAI's messages, with tools and reasoning.",
        target="mm.plugins.formats.chat.format:ChatFormat",
        row="chat",
        recognise=recognise,
    )
