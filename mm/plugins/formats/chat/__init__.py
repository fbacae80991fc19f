"""Conversations in MiniMind's two shapes and in OpenAI's."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec


def recognise(row: Mapping[str, Any]) -> bool:
    """Whether the row is a conversation of turns with a role (ShareGPT's turns say `from` instead)."""
    turns = row["conversations"] if "conversations" in row else row.get("messages", "absent")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "role" in turns[0] or "from" not in turns[0]
    return turns != "absent"


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
