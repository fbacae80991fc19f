"""A reward for a think block followed by an answer block."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import RewardSpec


def _of_both_blocks(config: FormatConfig, attribute: attrs.Attribute[bool], value: bool) -> None:
    if value and (config.opened or not config.answer):
        raise ValueError("'lines' is a rule for both blocks: neither --format-opened nor --no-format-answer goes with it")


@attrs.frozen(kw_only=True)
class FormatConfig:
    """The settings of the reward `format`: the blocks that a completion must have."""

    opened: bool = option(False, help="The prompt opens the think block, so the completion starts inside it.")
    answer: bool = option(True, help="Require answer tags too; otherwise any text may follow the think block.")
    lines: bool = option(
        False, help="MiniMind 2's rule: each tag on a line of its own, and anything, or nothing, between them.",
        validator=_of_both_blocks,
    )  # fmt: skip


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `format`."""
    yield RewardSpec(
        name="format",
        summary="0.5 for a think block followed by an answer block, each once and not empty, and nothing else.",
        target="mm.plugins.rewards.format.reward:Format",
        config=FormatConfig,
    )
