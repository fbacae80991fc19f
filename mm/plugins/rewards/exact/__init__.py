"""A reward for the right answer, compared as text."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class ExactConfig:
    """The settings of the reward `exact`: where the right answer and the given answer are read."""

    field: str = option("answer", help="Field of the row with the right answer, or a list of right answers.")
    pattern: str = option(
        "", help="Regular expression that finds the answer: its first group, or the whole match; the last match counts."
    )
    untagged: bool = option(False, help="Take a whole reply without answer tags as the answer; else it has no answer.")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `exact`."""
    yield RewardSpec(
        name="exact",
        summary="1 if the answer is the row's answer, else 0.",
        target="mm.plugins.rewards.exact.reward:Exact",
        config=ExactConfig,
    )
