"""A penalty for repeated n-grams."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class RepetitionConfig:
    """The settings of the reward `repetition`."""

    n: int = option(3, help="Words in an n-gram.", within="[1, inf)")
    cap: float = option(0.5, help="Largest penalty, reached if half of the n-grams are repetitions.", within="[0, inf)")
    whole_words: bool = option(False, help="A run of Chinese characters is one word, as in MiniMind, and not one word for each.")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `repetition`."""
    yield RewardSpec(
        name="repetition",
        summary="A penalty for repeated n-grams; a Chinese character counts as a word.",
        target="mm.plugins.rewards.repetition.reward:Repetition",
        config=RepetitionConfig,
    )
