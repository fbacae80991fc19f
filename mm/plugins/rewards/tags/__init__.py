"""A reward for each of the four tags."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class TagsConfig:
    """The settings of the reward `tags`."""

    opened: bool = option(False, help="The prompt opens the think block: the completion must not have another <think>.")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `tags`."""
    yield RewardSpec(
        name="tags",
        summary="0.25 for each of <think> </think> <answer> </answer> that occurs exactly once.",
        target="mm.plugins.rewards.tags.reward:Tags",
        config=TagsConfig,
    )
