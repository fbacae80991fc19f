"""What formats share: telling the shapes of conversations apart, and making messages of them.

A conversation is turns of role and content (MiniMind's and OpenAI's), turns of from and value (ShareGPT's), or a bare
text, which is one turn of whoever must have said it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError, Problem
from mm.plugins.formats.hermes import untagged
from mm.runtime.text.messages import Message, embedded_json, kind_of, parse_conversation

Messages = tuple[Message, ...]
Tools = tuple[Mapping[str, Any], ...]

# ShareGPT's names of speakers, and those of its descendants
_SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
    "observation": "tool", "tool": "tool", "function_response": "tool", "function": "tool",
    "function_call": "assistant",
}  # fmt: skip


def first_turn(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first turn of the row's conversation, empty for one without a turn that is an object; None without any
    conversation."""
    turns = next((row[key] for key in ("conversations", "messages") if row.get(key) is not None), None)
    if turns is None:
        return None
    first = turns[0] if isinstance(turns, list) and turns else None
    return first if isinstance(first, dict) else {}


def is_sharegpt(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is in ShareGPT's shape."""
    return "from" in turn and "role" not in turn


def is_preference(row: Mapping[str, Any]) -> bool:
    """Whether the row compares two answers."""
    return "chosen" in row and "rejected" in row


def is_open(row: Mapping[str, Any]) -> bool:
    """Whether the row's conversation waits for an answer: it ends with another role, or with an empty placeholder."""
    turns = next((row[key] for key in ("conversations", "messages") if row.get(key) is not None), None)
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict):
        return False
    role = _SPEAKERS.get(str(last.get("from"))) if is_sharegpt(last) else last.get("role")
    said = ("content", "value", "tool_calls", "function_call", "reasoning_content")
    return isinstance(role, str) and (role != "assistant" or not any(last.get(key) for key in said))


def role_turns(turns: Sequence[Any], place: str = "turn") -> list[Any]:
    """Turns of role and content, whichever shape they have. Raises DataError for a speaker that nobody knows."""
    return [
        _of_sharegpt(turn, f"{place} {number}") if isinstance(turn, dict) and is_sharegpt(turn) else turn
        for number, turn in enumerate(turns, 1)
    ]


def _of_sharegpt(turn: Mapping[str, Any], place: str) -> dict[str, Any]:
    speaker, value = turn["from"], turn.get("value")
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"{place}: from {str(speaker)[:40]!r} is not one of {', '.join(_SPEAKERS)}")
    rest = {key: turn[key] for key in ("tools", "functions", "tool_calls", "reasoning_content") if key in turn}
    if speaker != "function_call":
        return {"role": role, **(untagged(role, value, place) if isinstance(value, str) else {"content": value}), **rest}
    if isinstance(value, str):
        value = embedded_json(f"[{value}]", f"{place}: the function call", list)
    calls = value if isinstance(value, list) else [value]
    if len(calls) == 1 and isinstance(calls[0], list):  # the text was a list, inside the brackets just added
        calls = calls[0]
    return {"role": role, "content": "", **rest, "tool_calls": calls}


def parse_turns(
    row: Mapping[str, Any], turns: Any, *, name: str = "", complete: bool = True
) -> tuple[Messages, Tools]:
    """The messages and tools of a conversation in any shape; `name` is its key, for messages. Raises DataError."""
    try:
        if isinstance(turns, list):
            turns = role_turns(turns)
        return parse_conversation(row, turns=turns, complete=complete)
    except DataError as error:
        raise DataError(f"{name}: {error.reason}" if name else error.reason, problem=error.problem) from None


def said_by(value: Any, role: str, name: str) -> list[Any]:
    """Turns under a key: a text is one turn of `role`, an object one turn, a list is turns. Raises DataError."""
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


def without_answer(messages: Messages) -> Messages:
    """The prompt: a last turn of the assistant, filled or not, is dropped. Raises DataError when nobody is left to
    answer to."""
    prompt = messages[:-1] if messages[-1].role == "assistant" else messages
    if not prompt or prompt[-1].role not in ("user", "tool"):
        raise DataError("no question: the prompt must end with the user or a tool", problem="role order")
    return prompt


def with_system(row: Mapping[str, Any], turns: list[Any]) -> list[Any]:
    """The turns behind the system text that the row has in a field of its own. Raises DataError."""
    system = row.get("system")
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise DataError(f"system is {kind_of(system)}, expected text", problem="wrong type")
    return [{"role": "system", "content": system}, *turns]


def beside_system(row: Mapping[str, Any], messages: Messages) -> Messages:
    """The messages behind that text, which numbers of turns do not count. Raises DataError."""
    system = [Message(**turn) for turn in with_system(row, [])]
    if system and messages[0].role == "system":
        raise DataError("turn 1: role 'system' cannot follow the row's own system", problem="role order")
    return (*system, *messages)


@attrs.frozen
class Answered:
    """A conversation whose answer begins with message `begin`."""

    messages: Messages
    tools: Tools
    begin: int


def answered(row: Mapping[str, Any], prompt: Any, answer: Any, names: tuple[str, str]) -> Answered:
    """`answer` put behind `prompt`, each a text, a turn or turns. Raises DataError naming them by `names`."""
    asked = with_system(row, said_by(prompt, "user", names[0]))
    given = said_by(answer, "assistant", names[1])
    messages, tools = parse_turns(row, [*asked, *given], name=" + ".join(names))
    if messages[len(asked)].role != "assistant":
        raise DataError(f"{names[1]} begins with the {messages[len(asked)].role}, expected the assistant", problem="role order")
    return Answered(messages, tools, len(asked))
