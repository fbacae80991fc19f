"""The tool calls of an episode, judged: what the rewards of calls share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.runtime.text.messages import ToolCall
from mm.runtime.text.replies import read_calls, turns_of
from mm.runtime.text.tool_schema import call_fault, functions_of


def judged_calls(row: Any, completion: str) -> list[bool]:
    """For each call, in all turns, whether it can be made: it can be read, and fits one of the row's tools.

    Raises SchemaFault for a tool whose schema is none: that is the row's fault, not the model's.
    """
    functions = functions_of(tools_of(row))
    calls = [call for turn in turns_of(completion) for call in read_calls(turn)]
    return [isinstance(call, ToolCall) and not call_fault(call, functions) for call in calls]


def tools_of(row: Any) -> Sequence[Any]:
    """The tools of a row; none for a kind of row that has none."""
    return getattr(row, "tools", ())
