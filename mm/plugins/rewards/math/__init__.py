"""A reward for the right answer, compared as mathematics."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class MathConfig:
    """The settings of the reward `math`: where the right answer and the given answer are read."""

    field: str = option("answer", help="Field of the row with the right answer: a number or LaTeX.")
    pattern: str = option(
        "", help="Regular expression that finds the answer: its first group, or the whole match; the last match counts."
    )
    timeout: int = option(2, help="Seconds after which parsing or comparing an answer is abandoned.", within="[1, 86400]")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `math`."""
    yield RewardSpec(
        name="math",
        summary="1 if the answer equals the row's answer as mathematics (math-verify), else 0.",
        target="mm.plugins.rewards.math.reward:Math",
        config=MathConfig,
    )
