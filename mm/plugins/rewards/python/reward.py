"""The implementation of the reward `python`."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mm.contracts import Reward
from mm.core.errors import UsageError, close_match
from mm.plugins.rewards.python import PythonConfig
from mm.plugins.rewards.python.trl import call_as_trl, has_trl_signature
from mm.runtime.text.wording import error_text


class PythonReward(Reward):
    """The values that the function returns for `(rows, completions)`, or for TRL's arguments if it takes these: a list with a
    number or None for each completion."""

    def __init__(self, config: PythonConfig) -> None:
        super().__init__(config)
        self._function = load_function(*config.locate())
        self._trl = has_trl_signature(self._function)

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        if self._trl:
            return call_as_trl(self._function, rows, completions)  # type: ignore[no-any-return]
        return self._function(rows, completions)  # type: ignore[no-any-return]


def load_function(file: Path, name: str) -> Callable[..., Any]:
    """The function of this name in a file, which is run. Raises UsageError if the function does not exist, or if the file
    raises."""
    locator = f"{file}:{name}"
    spec = importlib.util.spec_from_file_location(f"mm_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--python-function {locator}: {file.name} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--python-function {locator}: {_place(error, file, spec.origin)}: {error_text(error)}. "
            "The file is run to define its function: mend that line."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, value in vars(module).items() if callable(value)]
        raise UsageError(f"--python-function {locator}: {file} has no function {name!r}.{close_match(name, names)}")
    return function  # type: ignore[no-any-return]


def _place(error: BaseException, file: Path, origin: str | None) -> str:
    """`file:line` of the line that raised; `file` if no line of it did, as for a file that cannot be decoded."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin]
    if isinstance(error, SyntaxError) and error.filename == origin:
        lines.append(error.lineno)
    return f"{file}:{lines[-1]}" if lines and lines[-1] else f"{file}"
