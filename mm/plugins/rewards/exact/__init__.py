"""The right answer, by its text."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class ExactConfig:
    """What is compared with what."""

    field: str = option("answer", help="Field of the row that holds the right answer, or a list of them.")
    pattern: str = option(
        "", help="Regular expression that finds the answer: its first group, or all of it; the last match counts."
    )
    untagged: bool = option(False, help="A reply without answer tags is all answer; else it has none.")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="exact",
        summary="1 when the answer is the row's answer.",
        target="mm.plugins.rewards.exact.reward:Exact",
        config=ExactConfig,
    )
