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


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `python`."""
    yield RewardSpec(
        name="python",
        summary="A Python function of yours: FILE.py:FUNCTION, called with rows and completions, or as in TRL.",
        target="mm.plugins.rewards.python.reward:PythonReward",
        config=PythonConfig,
    )
