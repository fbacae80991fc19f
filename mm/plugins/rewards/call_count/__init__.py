"""A reward for making the expected number of tool calls."""

from __future__ import annotations

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import RewardSpec


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `call-count`."""
    yield RewardSpec(
        name="call-count",
        summary="0.5 for as many valid calls as the row has gt values and no invalid one; else -0.5 for each that differs.",
        target="mm.plugins.rewards.call_count.reward:CallCount",
    )
