"""Conversations in the shapes of MiniMind's second and third generation and of OpenAI."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import first_turn, is_judged, is_open, is_sharegpt


def accepts(row: Mapping[str, Any]) -> bool:
    """True if the row has a conversation whose turns have a role (ShareGPT's turns have `from` instead).

    False if the answer is judged: with a label or beside another answer, it may be a bad one."""
    first = first_turn(row)
    return first is not None and not is_sharegpt(first) and not is_judged(row)


def recognise(row: Mapping[str, Any]) -> bool:
    """True if `accepts`, the conversation ends with a reply, and the row is not of another format with a conversation."""
    return accepts(row) and not is_open(row) and "gt" not in row


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `chat`."""
    yield FormatSpec(
        name="chat",
        summary="Conversations: MiniMind's conversations and OpenAI's messages, with tools and reasoning.",
        target="mm.plugins.formats.chat.format:ChatFormat",
        row="chat",
        recognise=recognise,
        accepts=accepts,
        example={"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]},
    )
