"""The parsing of one turn of a conversation: its fields under all the names that they have elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from mm.core.errors import DataError
from mm.runtime.text.messages import ROLES, Message, ToolCall, embedded_json, parse_call, type_error

# keys of a row or of a turn that hold something else than text, which no model here learns
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
# the names of a field: ours, then those of other programs
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
_CALLS = ("tool_calls", "function_calls", "tool_call", "function_call")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
CONTENTS = ("content", *_REASONING, *_CALLS)  # the keys of all that the assistant may say
# the names of roles elsewhere
_ROLES = {"developer": "system", "bot": "assistant", "model": "assistant", "gpt": "assistant", "ai": "assistant",
          "human": "user", "function": "tool", "ipython": "tool", "observation": "tool"}  # fmt: skip
_FLAGS = ("weight", "loss", "train", "trainable")
TURN_KEYS = ("role", *CONTENTS, *_FLAGS, "name", "tool_call_id", "tools", "functions")
_TEXT_PARTS, _TEXT = (None, "text", "input_text", "output_text"), ("text", "value", "content")


class _Fields:
    """A JSON object that is read key by key: `unread` are the keys with a value that were never read."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values, self.place = values, place
        self._read: set[str] = set()

    def read(self, name: str) -> Any:
        """The value of a key; None if it is missing."""
        self._read.add(name)
        return self.values.get(name)

    def read_one(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """(name, value) of the one of `names` that has a value; ("", None) if none has. Raises DataError if two have different
        values."""
        given = [(name, value) for name in names if (value := self.read(name)) is not None]
        for name, value in given[1:]:
            if value != given[0][1]:
                raise DataError(f"{self.place}: both {given[0][0]} and {name}, which differ: remove one of them")
        return given[0] if given else ("", None)

    def unread(self) -> list[tuple[str, str]]:
        """(key, value as JSON text), without those that are null or empty."""
        rest = {name: value for name, value in self.values.items() if name not in self._read}
        return [(name, json.dumps(value, ensure_ascii=False)) for name, value in rest.items() if value not in (None, "", [], {})]


def parse_turn(turn: Any, place: str) -> Message:
    """The message of a turn with role and content; `place` names it in errors. Raises DataError."""
    if not isinstance(turn, dict):
        raise type_error(place, turn, "an object with role and content")
    fields = _Fields(turn, place)
    role = fields.read("role")
    if role is None:
        raise DataError(f"{place}: no role", problem="missing field")
    if role not in ROLES:
        cure = f": rename it to {_ROLES[role]}" if isinstance(role, str) and role in _ROLES else ""
        raise DataError(f"{place}: role {str(role)[:40]!r} is not one of {', '.join(ROLES)}{cure}")
    if media := [name for name in MEDIA if fields.read(name)]:
        raise DataError(f"{place}: {media[0]}: only text can be learned")
    calls, unread = _calls(fields)
    if calls and role != "assistant":
        raise DataError(f"{place}: tool_calls on a turn of role {role!r}", problem="tool call")
    content, learn = _content(fields, role, bool(calls)), _learn(fields, role)
    reasoning = _reasoning(fields) if role == "assistant" else None
    origin = {name: fields.read(name) for name in ("name", "tool_call_id") if role == "tool" and isinstance(turn.get(name), str)}
    return Message(role, content, reasoning, calls, learn=learn, unread=(*unread, *fields.unread()), **origin)


def _reasoning(fields: _Fields) -> str | None:
    name, reasoning = fields.read_one(_REASONING)
    if reasoning is not None and not isinstance(reasoning, str):
        raise type_error(f"{fields.place}: {name}", reasoning, "text")
    return reasoning


def _learn(fields: _Fields, role: str) -> bool:
    """False if a flag of the turn says that it must not be learned. Only turns of the assistant ever are: on others, a flag that
    asks for it is not read."""
    flags = set()
    for name in _FLAGS:
        value = fields.values.get(name)
        if value is None or (role != "assistant" and value != 0):
            continue
        fields.read(name)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            shown = json.dumps(value, ensure_ascii=False)[:40]
            raise DataError(f"{fields.place}: {name} is {shown}: only 0 (not learned) and 1 (learned) are supported")
        flags.add(bool(value))
    if len(flags) > 1:
        raise DataError(f"{fields.place}: two of {', '.join(_FLAGS)} contradict each other: remove one of them")
    return flags != {False}


def _content(fields: _Fields, role: str, has_calls: bool) -> str:
    place, content = fields.place, fields.read("content")
    has_tools = role == "system" and any([fields.read("tools"), fields.read("functions")])
    if isinstance(content, str):
        return content
    if content is None and (has_calls or has_tools):
        return ""
    if content is None:
        raise DataError(f"{place}: no content", problem="missing field")
    if isinstance(content, list) and content and (role != "tool" or all(map(_is_text_part, content))):
        return "".join(_part_text(part, f"{place}: content[{index}]") for index, part in enumerate(content))
    if role == "tool" and isinstance(content, dict | list):
        return json.dumps(content, ensure_ascii=False)
    raise type_error(f"{place}: content", content, "text")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXT_PARTS and any(isinstance(part.get(name), str) for name in _TEXT)


def _part_text(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise type_error(place, part, "a part with type and text")
    if part.get("type") not in _TEXT_PARTS:
        raise DataError(f"{place} is a part of type {str(part['type'])[:40]!r}: only text can be learned", problem="wrong type")
    _, text = _Fields(part, place).read_one(_TEXT)
    if not isinstance(text, str):
        raise type_error(f"{place}: text", text, "text")
    return text


def _calls(fields: _Fields) -> tuple[tuple[ToolCall, ...], list[tuple[str, str]]]:
    """The calls of a turn, and the keys in them that nothing reads. Raises DataError if two fields have different calls."""
    parsed: dict[str, tuple[ToolCall, ...]] = {}
    unread: list[tuple[str, str]] = []
    for name in _CALLS:
        value, place = fields.read(name), f"{fields.place}: {name}"
        if not value:
            continue
        if name.endswith("s"):
            calls = [(call, f"{place}[{index}]") for index, call in enumerate(embedded_json(value, place, list))]
        else:
            calls = [(embedded_json(value, place, dict), place)]
        if calls:
            parsed[name] = tuple(_call(call, at, unread) for call, at in calls)
    if len(set(map(repr, parsed.values()))) > 1:
        raise DataError(f"{fields.place}: both {' and '.join(parsed)}, which differ: remove one of them", problem="tool call")
    return next(iter(parsed.values()), ()), unread


def _call(call: Any, place: str, unread: list[tuple[str, str]]) -> ToolCall:
    """The call, whose arguments may have another name. Adds the keys that nothing reads to `unread`."""
    if not isinstance(call, dict):
        return parse_call(call, place)
    outer = _Fields(call, place)
    function = outer.read("function") if isinstance(call.get("function"), dict) and call["function"].get("name") else None
    inner = outer if function is None else _Fields(function, place)
    parsed = parse_call({"name": inner.read("name"), "arguments": inner.read_one(_ARGUMENTS)[1]}, place)
    for name in ("type", "index"):
        outer.read(name)
    identity = outer.read("id") or inner.read("id")
    rest = outer.unread() + (inner.unread() if inner is not outer else [])
    unread += [(f"tool_calls.{key}", value) for key, value in rest]
    return attrs.evolve(parsed, id=identity) if isinstance(identity, str) else parsed
