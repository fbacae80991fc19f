"""Lengths in a range."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs.validators import ge

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class LengthConfig:
    """Ranges in characters, ends included; by default those of MiniMind's third generation."""

    min: int = option(20, help="Shortest completion, in characters.", validator=ge(0))
    max: int = option(800, help="Longest completion, in characters.", validator=ge(0))
    think_min: int = option(20, help="Shortest thoughts, in characters.", validator=ge(0))
    think_max: int = option(300, help="Longest thoughts, in characters.", validator=ge(0))


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="length",
        summary="0.5 for a length in the range, 1 for that of the thoughts, 0.25 for one </think>; else less than nothing.",
        target="mm.plugins.rewards.length.reward:Length",
        config=LengthConfig,
    )
