"""A penalty on saying things again."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs.validators import ge

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class RepetitionConfig:
    """What counts as repeated, and how much it costs at most."""

    n: int = option(3, help="Words in an n-gram.", validator=ge(1))
    cap: float = option(0.5, help="Largest penalty, reached when half of the n-grams are repetitions.", validator=ge(0.0))


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="repetition",
        summary="Below 0 for n-grams that are repeated; a Chinese character is a word.",
        target="mm.plugins.rewards.repetition.reward:Repetition",
        config=RepetitionConfig,
    )
