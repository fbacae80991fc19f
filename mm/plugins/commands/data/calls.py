"""Checking the tool calls of a conversation against the schemas of its tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mm.runtime.text.messages import Message
from mm.runtime.text.tool_schema import SchemaFault, argument_fault, functions_of

__all__ = ["SchemaFault", "call_faults"]


def call_faults(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], first: int = 1) -> Iterator[str]:
    """The faults of the calls, in the order of the turns; `first` is the number of the first turn.

    The calls of a row without tools are not checked. An argument that a schema does not name is a fault only if the schema
    forbids it (`additionalProperties`). Raises SchemaFault if a schema is itself invalid.
    """
    functions = functions_of(tools)
    for number, message in enumerate(messages, first):
        for call in message.tool_calls if tools else ():
            if call.name not in functions:
                yield f"turn {number}: calls {call.name!r}, which is not among the tools of the row"
                continue
            schema = functions[call.name].get("parameters")
            fault = argument_fault(call.arguments, schema, call.name) if isinstance(schema, dict) else ""
            if fault:
                yield f"turn {number}: {call.name}: {fault}"
