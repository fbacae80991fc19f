"""The four tags."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class TagsConfig:
    """Where the tags are looked for."""

    opened: bool = option(False, help="The prompt has opened the think block: no further <think> is wanted.")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="tags",
        summary="0.25 for each of <think> </think> <answer> </answer> that stands exactly once.",
        target="mm.plugins.rewards.tags.reward:Tags",
        config=TagsConfig,
    )
