"""Messages of a conversation, and the parsing of single values in them: tool calls, and JSON inside of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError, Problem, UsageError
from mm.runtime.text.strict_json import parse_json

ROLES = ("system", "user", "assistant", "tool")


@attrs.frozen
class ToolCall:
    """A tool call of the assistant; `arguments` is a JSON object. `id` is the name that a result refers to, "" if there is
    none; calls that differ only in it are equal."""

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    id: str = attrs.field(default="", eq=False, repr=False, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """The call as chat templates expect it, with OpenAI's keys."""
        call = {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}
        return {"id": self.id, **call} if self.id else call


@attrs.frozen
class Message:
    """One turn. `reasoning_content` is None if there was no reasoning, and "" if it is empty on purpose.

    `learn` is False for a turn of the assistant that must not be learned. `name` and `tool_call_id` belong to the result of a
    tool: which tool gave it, and to which call. `unread` are the keys of the row's turn that nothing reads, with their values as
    JSON text.
    """

    role: str
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    learn: bool = attrs.field(default=True, kw_only=True)
    name: str = attrs.field(default="", kw_only=True)
    tool_call_id: str = attrs.field(default="", eq=False, repr=False, kw_only=True)
    unread: tuple[tuple[str, str], ...] = attrs.field(default=(), eq=False, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates expect it, with OpenAI's keys. Keys that are not set are omitted."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message | {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key))}


def as_dicts(messages: Sequence[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as chat templates expect them. None values are omitted, since templates would print "None"."""
    return [
        m.as_dict() if isinstance(m, Message) else {key: value for key, value in m.items() if value is not None} for m in messages
    ]


def role_of(message: Message | Mapping[str, Any]) -> str:
    """The role of a message, which may be a dict with OpenAI's keys; empty if it has none."""
    return message.role if isinstance(message, Message) else str(message.get("role", ""))


def last_turns(messages: Sequence[Message | Mapping[str, Any]], turns: int) -> list[Message | Mapping[str, Any]]:
    """The last `turns` messages of the user with everything that follows each, after all system messages. 0: all messages."""
    asked = [index for index, message in enumerate(messages) if role_of(message) == "user"]
    first = asked[-turns] if 0 < turns < len(asked) else 0
    return [*(message for message in messages[:first] if role_of(message) == "system"), *messages[first:]]


def with_system(messages: Sequence[Message | Mapping[str, Any]], text: str) -> list[Message | Mapping[str, Any]]:
    """The conversation with a system message, in the place of an empty one, which may carry tools. Raises UsageError if the
    conversation has one that is not empty."""
    first = messages[0] if messages and role_of(messages[0]) == "system" else Message("system")
    if as_dicts([first])[0].get("content"):
        raise UsageError(
            "The conversation has a system message of its own: leave out --system (in Python `system`), or that message."
        )
    system = attrs.evolve(first, content=text) if isinstance(first, Message) else {**first, "content": text}
    return [system, *(message for message in messages if message is not first)]


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
        raise type_error(place, value, "a list" if expected is list else "an object", "tool call")
    return value


def type_error(place: str, value: Any, expected: str, problem: Problem = "wrong type") -> DataError:
    """The error that the value at `place` of a row is not what is `expected`, or is missing."""
    missing: Problem = "missing field"
    return DataError(f"{place} is {kind_of(value)}, expected {expected}", problem=missing if value is None else problem)


def kind_of(value: Any) -> str:
    """The type of a JSON value in words, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)
