"""Calling a reward function that was written for TRL's GRPOTrainer, with the arguments that it is given there.

TRL calls `function(prompts=..., completions=..., **columns)`, where each column of the data set is a list with one value per
completion. If prompts are conversations, a prompt is a list of messages, and a completion a list of one message.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mm.core.errors import UsageError

# columns that TRL does not pass again
_OWN = ("prompt", "completion", "completion_ids")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def has_trl_signature(function: Callable[..., Any]) -> bool:
    """True if the function takes `prompts` or any keyword, or `completions` as its first argument; ours takes (rows,
    completions)."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a function of a C module may have none
        return False
    if next(iter(parameters), "") == "rows":
        return False
    keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return keywords or "prompts" in parameters or next(iter(parameters), "") == "completions"


def call_as_trl(function: Callable[..., Any], rows: Sequence[Any], completions: Sequence[str]) -> Any:
    """The values that the function returns for the completions of these rows, which are prompts. Raises UsageError if the
    function asks for a column that none of the rows has."""
    arguments = arguments_of(rows, completions)
    parameters = inspect.signature(function).parameters
    named = (name for name, p in parameters.items() if p.kind in _NAMED and p.default is p.empty)
    if missing := [repr(name) for name in named if name not in arguments]:
        wanted = f"the column{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        columns = ", ".join(dict.fromkeys(name for row in rows for name in row.fields))
        raise UsageError(f"{_name(function)} asks for {wanted}; the row has {columns}.")
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    returned = function(**arguments)
    return asyncio.run(returned) if inspect.iscoroutine(returned) else returned


def arguments_of(rows: Sequence[Any], completions: Sequence[str]) -> dict[str, list[Any]]:
    """The keyword arguments of TRL: prompts, completions, and a list for each column; None where a row lacks the column."""
    plain = all(isinstance(row.fields.get("prompt"), str) for row in rows)
    columns = dict.fromkeys(name for row in rows for name in row.fields if name not in _OWN)
    return {
        **{name: [row.fields.get(name) for row in rows] for name in columns},
        "prompts": [row.fields["prompt"] if plain else [message.as_dict() for message in row.messages] for row in rows],
        "completions": list(completions) if plain else [[{"role": "assistant", "content": text}] for text in completions],
    }


def _name(function: Callable[..., Any]) -> str:
    """`FILE.py:FUNCTION`."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    return f"{Path(code.co_filename).name}:{name}" if code else name
