"""A Python function of the user as a reward."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class PythonConfig:
    """The settings of the reward `python`."""

    function: Path | None = option(None, help="FILE.py:FUNCTION, with FILE relative to the workspace.")  # noqa: RUF009


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
