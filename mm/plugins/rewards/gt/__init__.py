"""A reward for the expected values in the final answer."""

from __future__ import annotations

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import RewardSpec


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `gt`."""
    yield RewardSpec(
        name="gt",
        summary="The share of the row's gt values that the final answer contains.",
        target="mm.plugins.rewards.gt.reward:ExpectedValues",
    )
