"""Functions shared by the formats: they recognise the shapes of conversations and parse them to messages.

A conversation has turns with role and content (MiniMind's and OpenAI's shape), or turns with from and value (ShareGPT's
shape), or it is a bare text: one turn, whose role follows from the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError, Problem
from mm.plugins.formats.hermes import parse_tags
from mm.runtime.text.conversation import parse_conversation
from mm.runtime.text.messages import Message, embedded_json, kind_of
from mm.runtime.text.turn import CONTENTS

Messages = tuple[Message, ...]
Tools = tuple[Mapping[str, Any], ...]

# keys of a row: is its answer good; an answer that is worse than that of its conversation
LABELS = ("label", "kto_tag")
REJECTED = ("rejected_response", "rejected_messages", "rejected")

# speakers of ShareGPT and of the formats derived from it -> roles
_SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
    "observation": "tool", "tool": "tool", "function_response": "tool", "function": "tool",
    "function_call": "assistant",
}  # fmt: skip


def first_turn(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first turn of the row's conversation; empty if that is not an object, None if the row has no conversation."""
    turns = next((row[key] for key in ("conversations", "messages") if row.get(key) is not None), None)
    if turns is None:
        return None
    first = turns[0] if isinstance(turns, list) and turns else None
    return first if isinstance(first, dict) else {}


def is_sharegpt(turn: Mapping[str, Any]) -> bool:
    """True if a turn has ShareGPT's shape."""
    return turn.get("from") is not None and turn.get("role") is None


def is_preference(row: Mapping[str, Any]) -> bool:
    """True if the row has a chosen and a rejected answer; the chosen one may be the end of its conversation."""
    if "chosen" in row and "rejected" in row:
        return True
    return rejected_key(row) != "" and first_turn(row) is not None and not is_open(row)


def rejected_key(row: Mapping[str, Any]) -> str:
    """The key of the answer that is worse than the one in the row's conversation; "" if there is none."""
    return next((key for key in REJECTED if row.get(key) is not None and row.get("chosen") is None), "")


def is_judged(row: Mapping[str, Any]) -> bool:
    """True if the row's answer must not simply be learned: it has a label, or another answer is preferred or worse."""
    return label_key(row) != "" or is_preference(row)


def label_key(row: Mapping[str, Any]) -> str:
    """The key of the row's label, good or bad; "" if it has none. A `label` of another kind, such as a topic, is none."""
    return next((key for key in LABELS if row.get(key) is not None and (key != "label" or truth(row[key]) is not None)), "")


def truth(value: Any) -> bool | None:
    """A label as a truth value: true, false, 1, 0, or one of them as text, as a table has it; None for any other value."""
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def is_open(row: Mapping[str, Any]) -> bool:
    """True if the row's conversation has no final reply: its last turn is not the assistant's, or is empty."""
    turns = next((row[key] for key in ("conversations", "messages") if row.get(key) is not None), None)
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict):
        return False
    role = _SPEAKERS.get(str(last.get("from"))) if is_sharegpt(last) else last.get("role")
    return isinstance(role, str) and (role != "assistant" or not any(last.get(key) for key in ("value", *CONTENTS)))


def role_turns(turns: Sequence[Any], place: str = "turn") -> list[Any]:
    """Turns with role and content, from turns of either shape. Raises DataError for an unknown speaker."""
    return [
        _from_sharegpt(turn, f"{place} {number}") if isinstance(turn, dict) and is_sharegpt(turn) else turn
        for number, turn in enumerate(turns, 1)
    ]


def _from_sharegpt(turn: Mapping[str, Any], place: str) -> dict[str, Any]:
    speaker, value = turn["from"], turn.get("value")
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"{place}: from {str(speaker)[:40]!r} is not one of {', '.join(_SPEAKERS)}")
    rest = {key: other for key, other in turn.items() if key not in ("from", "value", "role") and other is not None}
    if speaker != "function_call":
        said = parse_tags(role, value, place) if isinstance(value, str) else {} if value is None else {"content": value}
    else:
        said = {"content": "", "tool_calls": _calls(value, place)}
    if twice := [key for key in said if rest.get(key)]:
        raise DataError(f"{place}: both value and {twice[0]}: remove one of them")
    return {**rest, "role": role, **said}


def _calls(value: Any, place: str) -> list[Any]:
    if isinstance(value, str):
        value = embedded_json(f"[{value}]", f"{place}: the function call", list)
    calls = value if isinstance(value, list) else [value]
    if len(calls) == 1 and isinstance(calls[0], list):  # the text was a list, inside the brackets just added
        calls = calls[0]
    return calls


def parse_turns(
    row: Mapping[str, Any], turns: Any, *, name: str = "", complete: bool = True
) -> tuple[Messages, Tools]:
    """The messages and tools of a conversation in any shape; `name` is its key, for error messages. Raises DataError."""
    try:
        if isinstance(turns, list):
            turns = role_turns(turns)
        return parse_conversation(row, turns=turns, complete=complete)
    except DataError as error:
        raise DataError(f"{name}: {error.reason}" if name else error.reason, problem=error.problem) from None


def as_turns(value: Any, role: str, name: str) -> list[Any]:
    """The value of the key `name` as turns: a text is one turn of `role`, an object is one turn, and a list has several.
    Raises DataError."""
    if isinstance(value, str) and not value.strip():
        raise DataError(f"{name} is empty", problem="empty")
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return role_turns([value], name)
    if isinstance(value, list) and value:
        return role_turns(value, f"{name}: turn")
    missing: Problem = "missing field" if value is None else "empty" if value == [] else "wrong type"
    reason = f"{name} is empty" if value == [] else f"{name} is {kind_of(value)}, expected text or turns"
    raise DataError(reason, problem=missing)


def without_reply(messages: Messages) -> Messages:
    """The messages without a last turn of the assistant, even if it is empty. Raises DataError if the rest does not end
    with the user or a tool."""
    prompt = messages[:-1] if messages[-1].role == "assistant" else messages
    if not prompt or prompt[-1].role not in ("user", "tool"):
        raise DataError("no question: the prompt must end with a turn of the user or of a tool", problem="role order")
    return prompt


def with_system_turn(row: Mapping[str, Any], turns: list[Any]) -> list[Any]:
    """The turns, preceded by a turn with the row's `system` text if it has one. Raises DataError."""
    system = row.get("system")
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise DataError(f"system is {kind_of(system)}, expected text", problem="wrong type")
    return [{"role": "system", "content": system}, *turns]


def with_system_message(row: Mapping[str, Any], messages: Messages) -> Messages:
    """Parsed messages, preceded by a message with the row's `system` text if it has one. It is added after parsing, so that
    it does not shift the turn numbers in error messages. Raises DataError."""
    system = [Message(**turn) for turn in with_system_turn(row, [])]
    if system and messages[0].role == "system":
        raise DataError("turn 1: role 'system' cannot follow the row's own system", problem="role order")
    return (*system, *messages)


@attrs.frozen
class CompletedPrompt:
    """A conversation made of a prompt and an answer, which starts at message `begin`."""

    messages: Messages
    tools: Tools
    begin: int


def complete_prompt(row: Mapping[str, Any], prompt: Any, answer: Any, names: tuple[str, str]) -> CompletedPrompt:
    """`prompt` followed by `answer`, each a text, a turn or a list of turns. `names` are their keys, for error messages.
    Raises DataError."""
    prompt_turns = with_system_turn(row, as_turns(prompt, "user", names[0]))
    answer_turns = as_turns(answer, "assistant", names[1])
    messages, tools = parse_turns(row, [*prompt_turns, *answer_turns], name=" + ".join(names))
    begin = len(prompt_turns)
    if messages[begin].role != "assistant":
        raise DataError(f"{names[1]} starts with the {messages[begin].role}, expected the assistant", problem="role order")
    return CompletedPrompt(messages, tools, begin)
