"""The parser of pairs of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.alpaca.format import AlpacaFormat, instruction_turns
from mm.plugins.formats.chat.format import ChatFormat
from mm.plugins.formats.preference.row import PreferenceRow
from mm.plugins.formats.turns import (
    REJECTED,
    Messages,
    Tools,
    as_turns,
    parse_turns,
    rejected_key,
    role_turns,
    with_system_turn,
)
from mm.runtime.text.conversation import conversation_of
from mm.runtime.text.messages import Message


class PreferenceFormat(Format):
    """`chosen` and `rejected`: whole conversations, or answers to a prompt that the row has under `prompt`,
    `conversations`, `messages` or `instruction`. Each is a text, a turn or a list of turns, in OpenAI's or ShareGPT's
    shape. Or a conversation with its chosen answer, and the other one as `rejected_response` or `rejected_messages`."""

    keys = frozenset({"chosen", "rejected", "prompt", *REJECTED, *AlpacaFormat.keys, *ChatFormat.keys} - {"output"})

    def parse(self, row: Mapping[str, Any]) -> PreferenceRow:
        """The pair. Raises DataError with the side, the turn and the problem."""
        row = _with_both_answers(row)
        chosen, tools = _side(row, "chosen")
        rejected, others = _side(row, "rejected")
        if chosen == rejected:
            raise DataError("chosen and rejected are the same")
        if tools != others:
            raise DataError("chosen and rejected have different tools", problem="tool call")
        return PreferenceRow(chosen, rejected, tools, _first_difference(chosen, rejected))


def _with_both_answers(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with `chosen` and `rejected`; its conversation, if that ends with the chosen answer, becomes `chosen`."""
    key, turns = rejected_key(row), conversation_of(row)
    if not key or not isinstance(turns, list):
        return row
    chosen, rejected = role_turns(turns), as_turns(row[key], "assistant", key)
    if isinstance(rejected[0], dict) and rejected[0].get("role") == "assistant":
        rejected = [*chosen[:-1], *rejected]
    return {**row, "messages": None, "conversations": None, "chosen": chosen, "rejected": rejected}


def _side(row: Mapping[str, Any], name: str) -> tuple[Messages, Tools]:
    turns = as_turns(row.get(name), "assistant", name)
    if isinstance(turns[0], dict) and turns[0].get("role") == "assistant":
        prompt = _prompt(row)
        if prompt is None:
            raise DataError(f"{name} is an answer, but the row has no prompt", problem="missing field")
        return parse_turns(row, [*prompt, *turns], name=name)
    messages, tools = parse_turns(row, with_system_turn(row, turns), name=name)
    _check_prompt(row, messages, name)
    return messages, tools


def _prompt(row: Mapping[str, Any]) -> list[Any] | None:
    if row.get("prompt") is not None:
        return with_system_turn(row, as_turns(row["prompt"], "user", "prompt"))
    conversation = conversation_of(row)
    if conversation is not None:
        return with_system_turn(row, as_turns(conversation, "user", "conversation"))
    return instruction_turns(row) if row.get("instruction") is not None else None


def _check_prompt(row: Mapping[str, Any], messages: Messages, name: str) -> None:
    """Check that the row's prompt, if any, is part of the whole conversation `messages`. Raises DataError."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        matches = any(m.role == "user" and m.content.strip() == prompt.strip() for m in messages)
    elif isinstance(prompt, list) and prompt:
        expected, _ = parse_turns(
            {"tools": row.get("tools")}, as_turns(prompt, "user", "prompt"), name="prompt", complete=False
        )
        matches = messages[: len(expected)] == expected
    else:
        return
    if not matches:
        raise DataError(f"{name} does not start with the row's prompt")


def _first_difference(chosen: Messages, rejected: Messages) -> int:
    """The index of the first message that differs, or, if one side only is longer, of the last message that both have.
    Raises DataError if it is not the assistant's."""
    pairs = zip(chosen, rejected, strict=False)
    begin = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1)
    pair: tuple[Message, ...] = (chosen[begin], rejected[begin])
    if any(message.role != "assistant" for message in pair):
        raise DataError(f"turn {begin + 1}: chosen and rejected answer different prompts")
    return begin
