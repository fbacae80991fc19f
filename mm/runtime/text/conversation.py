"""The parsing of conversations from JSON rows.

Three shapes of rows are parsed:

- MiniMind's second generation: `conversations`, with `functions` on the system turn;
- MiniMind's third generation: `tools` and `tool_calls` as JSON text, and `reasoning_content`;
- OpenAI's: `messages`, top-level `tools`, and also the older `function_call`.

Every error names the turn, counted from 1. A key of a turn that nothing reads is kept in `Message.unread`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError
from mm.runtime.text.messages import Message, embedded_json, type_error
from mm.runtime.text.nulls import has_null_keys, without_null_keys
from mm.runtime.text.turn import parse_turn

# characters: a longer one would fill the memory while it is encoded, and no model reads so much at once
MAX_CHARACTERS = 1 << 20


def parse_conversation(
    row: Mapping[str, Any], *, turns: Any = None, complete: bool = True
) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """The messages and tools of a row. `turns` are the raw messages if the row has them under another key.

    With `complete` the last turn must be a non-empty one of the assistant; pass False for rows that are prompts. A null in the
    arguments of a call counts as missing unless the schema of its tool allows it. Raises DataError.
    """
    if turns is None:
        turns = conversation_of(row)
    if not isinstance(turns, list):
        raise type_error("messages (or conversations)" if turns is None else "the conversation", turns, "a list of turns")
    if not turns:
        raise DataError("the conversation is empty", problem="empty")
    messages = tuple(parse_turn(turn, f"turn {number}") for number, turn in enumerate(turns, 1))
    _check_order(messages, complete)
    size = sum(len(message.content) + len(message.reasoning_content or "") for message in messages)
    if size > MAX_CHARACTERS:
        raise DataError(f"the conversation has {size:,} characters, more than {MAX_CHARACTERS:,}: cut it into several rows")
    tools = parse_tools(row, turns)
    return _without_padding(messages, tools), tools


def conversation_of(row: Mapping[str, Any]) -> Any:
    """The value of a row's `conversations` or `messages`; None if it has neither. Raises DataError if it has both."""
    values = [row[key] for key in ("conversations", "messages") if row.get(key) is not None]
    if len(values) > 1:
        raise DataError("both conversations and messages: remove one of them")
    return values[0] if values else None


def parse_tools(row: Mapping[str, Any], turns: Sequence[Any] = ()) -> tuple[Mapping[str, Any], ...]:
    """The tool schemas of a row, without keys that are null: its own `tools`, and those on system turns. Raises DataError."""
    schemas: list[Mapping[str, Any]] = []
    for place, value in _tool_fields(row, turns):
        tools = without_null_keys(embedded_json(value, place, list))
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


def _without_padding(messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    if not any(has_null_keys(call.arguments) for message in messages for call in message.tool_calls):
        return messages
    from mm.runtime.text.padding import without_padding  # imports jsonschema, which few rows need

    return tuple(
        attrs.evolve(message, tool_calls=tuple(without_padding(call, tools) for call in message.tool_calls))
        for message in messages
    )


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
