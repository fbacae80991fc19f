"""Running the calls of a model: from a call to the text that the model is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mm.core.errors import DataError, MMError
from mm.core.records import ToolSpec
from mm.runtime.text.replies import Call
from mm.runtime.text.tool_schema import call_fault, functions_of

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.generation.engine import Tool

T = TypeVar("T")


def open_tools(plugins: PluginManager, names: Sequence[str]) -> dict[str, Tool]:
    """Name in the tool's schema -> the tool, with its default settings. Raises UsageError for an unknown name."""
    found: dict[str, Tool] = {}
    for name in names:
        config = plugins.get(ToolSpec, name).config
        tool: Tool = plugins.load(ToolSpec, name)(config() if config else None)
        found[tool.schema["name"]] = tool
    return found


def offered(tools: Mapping[str, Tool]) -> list[dict[str, Any]]:
    """The tools as a chat template takes them."""
    return [{"type": "function", "function": dict(tool.schema)} for tool in tools.values()]


def call(tools: Mapping[str, Tool], asked: Call) -> str:
    """The result as JSON text. A call that cannot be read, that asks for an unknown tool or does not fit its schema,
    and arguments that the tool refuses give `{"error": ...}`, so that the model can mend it.

    What else a tool raises keeps its traceback and gains a note with the tool's name. Raises MMError for a result that
    is no JSON value.
    """
    if isinstance(asked, DataError):
        return _text({"error": asked.reason})
    fault = call_fault(asked, functions_of(tool.schema for tool in tools.values()))
    if fault:
        return _text({"error": fault})
    try:
        result = tools[asked.name](asked.arguments)
    except ValueError as error:
        return _text({"error": str(error) or "the tool refuses these arguments"})
    except Exception as error:
        error.add_note(f"in tool {asked.name!r}, called with {dict(asked.arguments)!r}")
        raise
    try:
        return _text(result)
    except (TypeError, ValueError) as error:
        raise MMError(f"Tool {asked.name!r} gave what is no JSON value: {error}.") from error


def take_turns(
    talks: Sequence[T],
    draw: Callable[[Sequence[T], int], Sequence[Sequence[Call]]],
    answer: Callable[[T, list[str]], bool],
    tools: Mapping[str, Tool],
    most: int,
) -> list[T]:
    """The one loop of turns with tools: `draw` a turn of each talk, make the calls in it, `answer` with their results.

    A talk goes on while its turns call and `answer` says True. Returns those whose turn number `most` still called:
    these calls are not made.
    """
    going = list(talks)
    for turn in range(most):
        if not going:
            break
        calling = [(talk, calls) for talk, calls in zip(going, draw(going, turn), strict=True) if calls]
        if turn == most - 1:
            return [talk for talk, _ in calling]
        going = [talk for talk, calls in calling if answer(talk, [call(tools, one) for one in calls])]
    return []


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
