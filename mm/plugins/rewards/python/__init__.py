"""A Python function of the user as a reward."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from mm.core.errors import UsageError
from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec
from mm.core.workspace import Workspace


@attrs.frozen(kw_only=True)
class PythonConfig:
    """The settings of the reward `python`."""

    function: Path | None = option(None, help="FILE.py:FUNCTION, with FILE relative to the workspace.")  # noqa: RUF009

    def locate(self) -> tuple[Path, str]:
        """The file and the function's name. Raises UsageError if none is given, or the file does not exist. Runs nothing."""
        if self.function is None:
            raise UsageError("--reward python needs --python-function FILE.py:FUNCTION.")
        text, colon, name = str(self.function).rpartition(":")
        if not colon or not text or not name.isidentifier():
            raise UsageError(f"--python-function {self.function}: expected FILE.py:FUNCTION.")
        file = Path(text)
        if not file.is_file():
            raise UsageError(f"--python-function {self.function}: the file {file} does not exist. {_place_of_search(file)}")
        return file, name

    check_files = locate


def _place_of_search(file: Path) -> str:
    workspace = Workspace.here().path
    here = Path.cwd() / (file.relative_to(workspace) if file.is_relative_to(workspace) else file)
    there = f" The current folder has it: {here}." if here.is_file() else ""
    return f"A relative path starts at the workspace, {workspace.resolve()}.{there}"


def _meant(text: str) -> str:
    """The options for a text that is a function in a file, given as the name of a reward."""
    file, _, function = text.partition(":")
    return f"--reward python --python-function {file}:{function or 'FUNCTION'}" if file.endswith(".py") else ""


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `python`."""
    yield RewardSpec(
        name="python",
        summary="A Python function of yours: FILE.py:FUNCTION, called with rows and completions, or as in TRL.",
        target="mm.plugins.rewards.python.reward:PythonReward",
        config=PythonConfig,
        meant=_meant,
    )
