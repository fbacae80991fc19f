"""The check of an episode's tool calls, shared by the rewards for calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.runtime.text.messages import ToolCall
from mm.runtime.text.replies import read_calls, turns_of
from mm.runtime.text.tool_schema import call_fault, functions_of


def check_calls(row: Any, completion: str) -> list[bool]:
    """For each call of all turns: True if its syntax is valid and it fits one of the row's tools.

    Raises SchemaFault if the schema of a tool is invalid: that is an error in the row, not in the completion.
    """
    functions = functions_of(tools_of(row))
    calls = [call for turn in turns_of(completion) for call in read_calls(turn)]
    return [isinstance(call, ToolCall) and not call_fault(call, functions) for call in calls]


def tools_of(row: Any) -> Sequence[Any]:
    """The tools of a row; empty for kinds of row without tools."""
    return getattr(row, "tools", ())
