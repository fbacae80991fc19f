"""Reads pairs of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.alpaca.format import asked
from mm.plugins.formats.preference.row import PreferenceRow
from mm.plugins.formats.turns import Messages, Tools, parse_turns, said_by, with_system
from mm.runtime.text.messages import Message, conversation_of


class PreferenceFormat(Format):
    """`chosen` and `rejected`: whole conversations, or answers to a prompt that stands beside them as `prompt`,
    `conversations`, `messages` or `instruction`; each a text, a turn or turns of either shape."""

    def parse(self, row: Mapping[str, Any]) -> PreferenceRow:
        """The pair. Raises DataError naming the side, the turn and what is wrong."""
        chosen, tools = _side(row, "chosen")
        rejected, others = _side(row, "rejected")
        if chosen == rejected:
            raise DataError("chosen and rejected are the same")
        if tools != others:
            raise DataError("chosen and rejected have different tools", problem="tool call")
        return PreferenceRow(chosen, rejected, tools, _parting(chosen, rejected))


def _side(row: Mapping[str, Any], name: str) -> tuple[Messages, Tools]:
    turns = said_by(row.get(name), "assistant", name)
    if isinstance(turns[0], dict) and turns[0].get("role") == "assistant":
        before = _prompt(row)
        if before is None:
            raise DataError(f"{name} is an answer, and no prompt stands beside it", problem="missing field")
        return parse_turns(row, [*before, *turns], name=name)
    messages, tools = parse_turns(row, with_system(row, turns), name=name)
    _check_prompt(row.get("prompt"), messages, name)
    return messages, tools


def _prompt(row: Mapping[str, Any]) -> list[Any] | None:
    if row.get("prompt") is not None:
        return with_system(row, said_by(row["prompt"], "user", "prompt"))
    conversation = conversation_of(row)
    if conversation is not None:
        return with_system(row, said_by(conversation, "user", "conversation"))
    return asked(row) if row.get("instruction") is not None else None


def _check_prompt(prompt: Any, messages: Messages, name: str) -> None:
    """A prompt beside whole conversations is a repetition, or the row contradicts itself."""
    if isinstance(prompt, str) and prompt.strip():
        said = any(m.role == "user" and m.content.strip() == prompt.strip() for m in messages)
    elif isinstance(prompt, list) and prompt:
        begin, _ = parse_turns({}, said_by(prompt, "user", "prompt"), name="prompt", complete=False)
        said = messages[: len(begin)] == begin
    else:
        return
    if not said:
        raise DataError(f"prompt is not what {name} begins with")


def _parting(chosen: Messages, rejected: Messages) -> int:
    """The first message that differs; where one side only goes on longer, the last that both have."""
    pairs = zip(chosen, rejected, strict=False)
    begin = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1)
    parted: tuple[Message, ...] = (chosen[begin], rejected[begin])
    if any(message.role != "assistant" for message in parted):
        raise DataError(f"turn {begin + 1}: chosen and rejected answer different prompts")
    return begin
