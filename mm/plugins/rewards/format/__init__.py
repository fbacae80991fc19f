"""Think and answer blocks in their order."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


@attrs.frozen(kw_only=True)
class FormatConfig:
    """What a completion must be made of."""

    opened: bool = option(False, help="The prompt has opened the think block, so the completion begins inside it.")
    answer: bool = option(True, help="Answer tags are wanted too; without them anything may follow the think block.")


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The part."""
    yield RewardSpec(
        name="format",
        summary="0.5 for a think block and then an answer block, each once and filled, and nothing else.",
        target="mm.plugins.rewards.format.reward:Format",
        config=FormatConfig,
    )
