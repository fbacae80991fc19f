"""Turns of the assistant that a row excludes from learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from mm.core.errors import DataError
from mm.runtime.text.messages import Message


def without_unlearned(learn: list[bool], messages: Sequence[Message | Mapping[str, Any]]) -> list[bool]:
    """The targets of a conversation without those of messages with `learn=False`; `learn` has one run for each turn of the
    assistant. Raises DataError if it has not, so that nobody knows which run belongs to which turn."""
    replies = [message for message in messages if _role(message) == "assistant"]
    if all(getattr(reply, "learn", True) for reply in replies):
        return learn
    runs = [(learned, len(list(run))) for learned, run in groupby(learn)]
    if sum(learned for learned, _ in runs) != len(replies):
        raise DataError("a turn must not be learned, but the chat template does not mark each turn of the assistant by itself")
    wanted = (getattr(reply, "learn", True) for reply in replies)
    return [flag for learned, size in runs for flag in [learned and next(wanted)] * size]


def _role(message: Message | Mapping[str, Any]) -> Any:
    return message.role if isinstance(message, Message) else message.get("role")
