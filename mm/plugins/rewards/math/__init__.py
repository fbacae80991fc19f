"""The right answer, by its value."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs.validators import gt

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class MathConfig:
    """What is compared with what."""

    field: str = option("answer", help="Field of the row that holds the right answer: a number or LaTeX.")
    pattern: str = option(
        "", help="Regular expression that finds the answer: its first group, or all of it; the last match counts."
    )
    timeout: int = option(2, help="Seconds after which reading an answer, or comparing it, is given up.", validator=gt(0))


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="math",
        summary="1 when the answer equals the row's answer as mathematics (math-verify).",
        target="mm.plugins.rewards.math.reward:Math",
        config=MathConfig,
    )
