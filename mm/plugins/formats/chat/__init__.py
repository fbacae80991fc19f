"""Conversations in MiniMind's two shapes and in OpenAI's."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import first_turn, is_open, is_preference, is_sharegpt


def accepts(row: Mapping[str, Any]) -> bool:
    """Whether the row has a conversation of turns with a role (ShareGPT's turns say `from` instead)."""
    first = first_turn(row)
    return first is not None and not is_sharegpt(first)


def recognise(row: Mapping[str, Any]) -> bool:
    """Whether that conversation is what the row is about, and finished."""
    return accepts(row) and not is_open(row) and "gt" not in row and not is_preference(row)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The part."""
    yield FormatSpec(
        name="chat",
        summary="Conversations: MiniMind's conversations and OpenAI's messages, with tools and reasoning.",
        target="mm.plugins.formats.chat.format:ChatFormat",
        row="chat",
        recognise=recognise,
        accepts=accepts,
    )
