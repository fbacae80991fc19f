"""Messages of a conversation, and their parsing from JSON rows.

Three shapes of rows are parsed:

- MiniMind's second generation: `conversations`, with `functions` on the system turn;
- MiniMind's third generation: `tools` and `tool_calls` as JSON text, and `reasoning_content`;
- OpenAI's: `messages`, top-level `tools`, and also the older `function_call`.

Every error names the turn, counted from 1.
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
    """A tool call of the assistant; `arguments` is a JSON object."""

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Message:
    """One turn. `reasoning_content` is None if there was no reasoning, and "" if it is empty on purpose."""

    role: str
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates expect it, with OpenAI's keys. Keys that are not set are omitted."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [{"type": "function", "function": attrs.asdict(call)} for call in self.tool_calls]
        return message


def as_dicts(messages: Sequence[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as chat templates expect them. None values are omitted, since templates would print "None"."""
    return [
        m.as_dict() if isinstance(m, Message) else {key: value for key, value in m.items() if value is not None} for m in messages
    ]


def parse_conversation(
    row: Mapping[str, Any], *, turns: Any = None, complete: bool = True
) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """The messages and tools of a row. `turns` are the raw messages if the row has them under another key.

    With `complete` the last turn must be a non-empty one of the assistant; pass False for rows that are prompts. Raises
    DataError.
    """
    if turns is None:
        turns = conversation_of(row)
    if not isinstance(turns, list):
        raise _type_error("the conversation", turns, "a list of turns")
    if not turns:
        raise DataError("the conversation is empty", problem="empty")
    messages = tuple(_message(turn, f"turn {number}") for number, turn in enumerate(turns, 1))
    _check_order(messages, complete)
    return messages, parse_tools(row, turns)


def conversation_of(row: Mapping[str, Any]) -> Any:
    """The value of a row's `conversations` or `messages`; None if it has neither. Raises DataError if it has both."""
    values = [row[key] for key in ("conversations", "messages") if row.get(key) is not None]
    if len(values) > 1:
        raise DataError("both conversations and messages: remove one of them")
    return values[0] if values else None


def parse_tools(row: Mapping[str, Any], turns: Sequence[Any] = ()) -> tuple[Mapping[str, Any], ...]:
    """The tool schemas of a row: its own `tools`, and those on system turns. Raises DataError."""
    schemas: list[Mapping[str, Any]] = []
    for place, value in _tool_fields(row, turns):
        tools = embedded_json(value, place, list)
        for index, tool in enumerate(tools):
            schema = tool.get("function", tool) if isinstance(tool, dict) else None
            if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
                raise DataError(f"{place}[{index}] is not a function schema with a name", problem="tool call")
        schemas.extend(tools)
    return tuple(schemas)


def _tool_fields(row: Mapping[str, Any], turns: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    if row.get("tools"):
        yield "tools", row["tools"]
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, dict) and turn.get("role") == "system":
            yield from ((f"turn {number}: {key}", turn[key]) for key in ("tools", "functions") if turn.get(key))


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise _type_error(place, turn, "an object with role and content")
    role = turn.get("role")
    if role is None:
        raise DataError(f"{place}: no role", problem="missing field")
    if role not in ROLES:
        raise DataError(f"{place}: role {str(role)[:40]!r} is not one of {', '.join(ROLES)}")
    reasoning = turn.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise _type_error(f"{place}: reasoning_content", reasoning, "text")
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
    raise _type_error(f"{place}: content", content, "text")


def _tool_calls(turn: Mapping[str, Any], place: str) -> tuple[ToolCall, ...]:
    value, single = turn.get("tool_calls"), turn.get("function_call")
    if value and single:
        raise DataError(f"{place}: both tool_calls and function_call: remove one of them", problem="tool call")
    if single:
        return (parse_call(embedded_json(single, f"{place}: function_call", dict), f"{place}: function_call"),)
    calls = embedded_json(value, f"{place}: tool_calls", list) if value else ()
    return tuple(parse_call(call, f"{place}: tool_calls[{index}]") for index, call in enumerate(calls))


def parse_call(call: Any, place: str) -> ToolCall:
    """Parses a call `{name, arguments}`, bare or under a key `function`; the arguments may be JSON text. `place` names the
    call in errors. Raises DataError."""
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise DataError(f"{place} has no function name", problem="tool call")
    arguments = call.get("arguments")
    return ToolCall(call["name"], embedded_json({} if arguments in (None, "") else arguments, f"{place}.arguments", dict))


def embedded_json(value: Any, place: str, expected: type) -> Any:
    """Parses a value of a row that is a list or an object (`expected`: list or dict), or JSON text of one. `place` names
    it in errors. Raises DataError."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise DataError(f"{place} is not valid JSON ({error})", problem="tool call") from None
    if not isinstance(value, expected):
        raise _type_error(place, value, "a list" if expected is list else "an object", "tool call")
    return value


# the roles that may come before a turn of each role; None: the turn may come first
_PREVIOUS = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def _check_order(messages: Sequence[Message], complete: bool) -> None:
    previous: str | None = None
    for number, message in enumerate(messages, 1):
        if previous not in _PREVIOUS[message.role]:
            clause = "come first" if previous is None else f"follow {previous}"
            raise DataError(f"turn {number}: role {message.role!r} cannot {clause}", problem="role order")
        may_be_empty = number == len(messages) and not complete
        if message.role in ("user", "assistant") and not (message.content.strip() or message.tool_calls or may_be_empty):
            raise DataError(f"turn {number}: the {message.role}'s content is empty", problem="empty")
        previous = message.role
    if complete and previous != "assistant":
        raise DataError(f"the last turn is {previous}'s, expected the assistant's", problem="role order")


def _type_error(place: str, value: Any, expected: str, problem: Problem = "wrong type") -> DataError:
    missing: Problem = "missing field"
    return DataError(f"{place} is {kind_of(value)}, expected {expected}", problem=missing if value is None else problem)


def kind_of(value: Any) -> str:
    """The type of a JSON value in words, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)
