"""A reward for lengths in a range."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class LengthConfig:
    """The settings of the reward `length`: ranges in characters, ends included. The defaults are those of MiniMind's third
    generation."""

    min: int = option(20, help="Shortest completion, in characters.", within="[0, inf)")
    max: int = option(800, help="Longest completion, in characters.", within="[0, inf)")
    think_min: int = option(20, help="Shortest thoughts, in characters.", within="[0, inf)")
    think_max: int = option(300, help="Longest thoughts, in characters.", within="[0, inf)")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `length`."""
    yield RewardSpec(
        name="length",
        summary="0.5 for a length in range, 1 for thoughts in range, 0.25 for exactly one </think>; else a penalty for each.",
        target="mm.plugins.rewards.length.reward:Length",
        config=LengthConfig,
    )
