"""Running a model's tool calls, and the loop of turns with tools."""

from __future__ import annotations

import copy
import json
import threading
import warnings
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

_LONGEST = 2**16  # characters of a result, of which a model's window holds a part at most


def open_tools(plugins: PluginManager, names: Sequence[str], parts: Mapping[str, Any] | None = None) -> dict[str, Tool]:
    """The named tools, by the name in their schema. `parts` has configs by section name, as in a `Run`; a tool that is not in it
    has its defaults. Raises UsageError for an unknown name."""
    found: dict[str, Tool] = {}
    for name in names:
        config = plugins.get(ToolSpec, name).config
        settings = (parts or {}).get(f"tool.{name}") or config() if config else None
        tool: Tool = plugins.load(ToolSpec, name)(settings)
        found[tool.schema["name"]] = tool
    return found


def template_tools(tools: Mapping[str, Tool]) -> list[dict[str, Any]]:
    """The tools' schemas in the form that a chat template takes."""
    return [{"type": "function", "function": dict(tool.schema)} for tool in tools.values()]


def call(tools: Mapping[str, Tool], request: Call) -> str:
    """Run a model's call. Returns the result as JSON text.

    The result is `{"error": ...}`, so that the model can correct itself, for a call that cannot be parsed, names an unknown
    tool or does not fit the tool's schema, if the tool raises ValueError, and, with a warning, if it takes longer than its
    `time_limit` or returns more than 64 Ki characters. Any other exception of a tool is raised on, with a note that names the
    tool and its arguments. Raises MMError if a tool returns something that is not a JSON value, or calls `sys.exit`.
    """
    if isinstance(request, DataError):
        return _text({"error": request.reason})
    fault = call_fault(request, functions_of(tool.schema for tool in tools.values()))
    if fault:
        return _text({"error": fault})
    try:
        result = _within_time(tools[request.name], copy.deepcopy(dict(request.arguments)))
    except _TooLong as error:
        return _refuse(request.name, str(error))
    except ValueError as error:
        return _text({"error": str(error) or "the tool refuses these arguments"})
    except Exception as error:
        error.add_note(f"in tool {request.name!r}, called with {dict(request.arguments)!r}")
        raise
    try:
        text = _text(result)
        return text if len(text) <= _LONGEST else _refuse(request.name, f"its result has {len(text):,} characters")
    except (TypeError, ValueError) as error:
        raise MMError(f"Tool {request.name!r} returned something that is not a JSON value: {error}.") from error


class _TooLong(Exception):
    """A tool has not returned in its time."""


def _within_time(tool: Tool, arguments: Mapping[str, Any]) -> Any:
    """The tool's result. Raises what the tool raises, and _TooLong after its time limit; its thread is then left to itself, since
    no thread can be ended from outside."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((tool(arguments), None))
        except SystemExit as error:
            outcome.append((None, MMError(f"The tool called sys.exit({error.code!r}).")))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, name="mm-tool", daemon=True)
    thread.start()
    thread.join(tool.time_limit)
    if not outcome:
        raise _TooLong(f"it took longer than {tool.time_limit:g} s")
    result, error = outcome[0]
    if error:
        raise error
    return result


def _refuse(name: str, why: str) -> str:
    warnings.warn(f"Tool {name!r} gave no result: {why}. The model gets this as its result.", stacklevel=4)
    return _text({"error": f"no result: {why}"})


def take_turns(
    conversations: Sequence[T],
    generate: Callable[[Sequence[T], int], Sequence[Sequence[Call]]],
    add_results: Callable[[T, list[str]], bool],
    tools: Mapping[str, Tool],
    max_turns: int,
) -> list[T]:
    """The one loop of turns with tools: generate a turn of every conversation, run its calls, add their results.

    `generate(conversations, turn)` appends a turn to each and returns its calls. `add_results(conversation, results)` returns
    True if the conversation continues. One whose turn has no calls ends. Returns the conversations that still have calls in
    turn number `max_turns`; these calls are not run.
    """
    active = list(conversations)
    for turn in range(max_turns):
        if not active:
            break
        calling = [(talk, calls) for talk, calls in zip(active, generate(active, turn), strict=True) if calls]
        if turn == max_turns - 1:
            return [talk for talk, _ in calling]
        active = [talk for talk, calls in calling if add_results(talk, [call(tools, one) for one in calls])]
    return []


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
