"""Messages of a conversation, and the reading of the shapes in which rows carry them.

Read are MiniMind's second generation (`conversations`, `functions` on the system turn), its third (`tools` and
`tool_calls` as JSON text, `reasoning_content`) and OpenAI's (`messages`, top-level `tools`, also the older
`function_call`). Every complaint names the turn, counted from 1, so that the author of a million rows can find it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError, Problem
from mm.runtime.text.strict_json import parse_json

ROLES = ("system", "user", "assistant", "tool")


@attrs.frozen
class ToolCall:
    """A call that the assistant makes; `arguments` is a JSON object."""

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Message:
    """One turn. `reasoning_content` None means that there was no reasoning, "" that it was left empty on purpose."""

    role: str
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What chat templates read: the field's usual keys, only those that are set."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            found["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            found["tool_calls"] = [{"type": "function", "function": attrs.asdict(call)} for call in self.tool_calls]
        return found


def as_dicts(messages: Sequence[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a chat template wants them; None values are left out, as templates print them as text."""
    return [
        m.as_dict() if isinstance(m, Message) else {key: value for key, value in m.items() if value is not None} for m in messages
    ]


def parse_conversation(
    row: Mapping[str, Any], *, turns: Any = None, complete: bool = True
) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """The messages and tools of a row (of its `turns`, when the messages lie under another key).

    `complete`: the last turn must be a filled one of the assistant; rows that are prompts pass False. Raises DataError.
    """
    if turns is None:
        turns = conversation_of(row)
    if not isinstance(turns, list):
        raise _wrong("the conversation", turns, "a list of turns")
    if not turns:
        raise DataError("the conversation is empty", problem="empty")
    messages = tuple(_message(turn, f"turn {number}") for number, turn in enumerate(turns, 1))
    _check_order(messages, complete)
    return messages, parse_tools(row, turns)


def conversation_of(row: Mapping[str, Any]) -> Any:
    """What a row has under `conversations` or `messages`, None for neither. Raises DataError for both."""
    found = [row[key] for key in ("conversations", "messages") if row.get(key) is not None]
    if len(found) > 1:
        raise DataError("both conversations and messages: leave one of them out")
    return found[0] if found else None


def parse_tools(row: Mapping[str, Any], turns: Sequence[Any] = ()) -> tuple[Mapping[str, Any], ...]:
    """The tool schemas of a row: its own `tools`, or those on a system turn. Raises DataError."""
    found: list[Mapping[str, Any]] = []
    for place, value in _tool_fields(row, turns):
        tools = embedded_json(value, place, list)
        for index, tool in enumerate(tools):
            schema = tool.get("function", tool) if isinstance(tool, dict) else None
            if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
                raise DataError(f"{place}[{index}] is not a function schema with a name", problem="tool call")
        found.extend(tools)
    return tuple(found)


def _tool_fields(row: Mapping[str, Any], turns: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    if row.get("tools"):
        yield "tools", row["tools"]
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, dict) and turn.get("role") == "system":
            yield from ((f"turn {number}: {key}", turn[key]) for key in ("tools", "functions") if turn.get(key))


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise _wrong(place, turn, "an object with role and content")
    role = turn.get("role")
    if role is None:
        raise DataError(f"{place}: no role", problem="missing field")
    if role not in ROLES:
        raise DataError(f"{place}: role {str(role)[:40]!r} is not one of {', '.join(ROLES)}")
    reasoning = turn.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise _wrong(f"{place}: reasoning_content", reasoning, "text")
    calls = _tool_calls(turn, place)
    if calls and role != "assistant":
        raise DataError(f"{place}: tool_calls on a turn of role {role!r}", problem="tool call")
    return Message(role, _content(turn, role, place, bool(calls)), reasoning if role == "assistant" else None, calls)


def _content(turn: Mapping[str, Any], role: str, place: str, has_calls: bool) -> str:
    content = turn.get("content")
    if isinstance(content, str):
        return content
    if content is None and (has_calls or (role == "system" and (turn.get("tools") or turn.get("functions")))):
        return ""
    if isinstance(content, list) and content and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        parts = [part.get("text") for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    if role == "tool" and isinstance(content, dict | list):
        return json.dumps(content, ensure_ascii=False)
    if content is None:
        raise DataError(f"{place}: no content", problem="missing field")
    raise _wrong(f"{place}: content", content, "text")


def _tool_calls(turn: Mapping[str, Any], place: str) -> tuple[ToolCall, ...]:
    value, single = turn.get("tool_calls"), turn.get("function_call")
    if value and single:
        raise DataError(f"{place}: both tool_calls and function_call: leave one of them out", problem="tool call")
    if single:
        return (parse_call(embedded_json(single, f"{place}: function_call", dict), f"{place}: function_call"),)
    calls = embedded_json(value, f"{place}: tool_calls", list) if value else ()
    return tuple(parse_call(call, f"{place}: tool_calls[{index}]") for index, call in enumerate(calls))


def parse_call(call: Any, place: str) -> ToolCall:
    """A call `{name, arguments}`, bare or under `function`; arguments may be JSON text. Raises DataError."""
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise DataError(f"{place} has no function name", problem="tool call")
    arguments = call.get("arguments")
    return ToolCall(call["name"], embedded_json({} if arguments in (None, "") else arguments, f"{place}.arguments", dict))


def embedded_json(value: Any, place: str, wanted: type) -> Any:
    """A list or object that may stand as JSON text inside a row. Raises DataError."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise DataError(f"{place} is not valid JSON ({error})", problem="tool call") from None
    if not isinstance(value, wanted):
        raise _wrong(place, value, "a list" if wanted is list else "an object", "tool call")
    return value


# what may stand before a turn of each role; None is the beginning
_BEFORE = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def _check_order(messages: Sequence[Message], complete: bool) -> None:
    before: str | None = None
    for number, message in enumerate(messages, 1):
        if before not in _BEFORE[message.role]:
            after = "at the beginning" if before is None else f"after {before}"
            raise DataError(f"turn {number}: role {message.role!r} cannot stand {after}", problem="role order")
        unfilled = number == len(messages) and not complete
        if message.role in ("user", "assistant") and not (message.content.strip() or message.tool_calls or unfilled):
            raise DataError(f"turn {number}: the {message.role}'s content is empty", problem="empty")
        before = message.role
    if complete and before != "assistant":
        raise DataError(f"the last turn is {before}'s, expected the assistant's", problem="role order")


def _wrong(place: str, value: Any, expected: str, problem: Problem = "wrong type") -> DataError:
    missing: Problem = "missing field"
    return DataError(f"{place} is {kind_of(value)}, expected {expected}", problem=missing if value is None else problem)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)
