"""A reward for valid tool calls."""

from __future__ import annotations

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import RewardSpec


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `tool-call`."""
    yield RewardSpec(
        name="tool-call",
        summary="The share of the tool calls that are well-formed and fit the schema of one of the row's tools.",
        target="mm.plugins.rewards.tool_call.reward:ToolCalls",
    )
