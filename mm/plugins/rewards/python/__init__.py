"""A function of the user's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class PythonConfig:
    """Which function."""

    function: Path | None = option(None, help="FILE.py:FUNCTION, the file from the workspace.")  # noqa: RUF009


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="python",
        summary="A Python function of yours: FILE.py:FUNCTION, called with rows and completions.",
        target="mm.plugins.rewards.python.reward:PythonReward",
        config=PythonConfig,
    )
