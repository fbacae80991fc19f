"""The reward of MiniMind 3's agent training, as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import attrs

from mm.core.hooks import hookimpl
from mm.core.records import RewardSpec
from mm.plugins.rewards.model import RewardModelConfig


@attrs.frozen(kw_only=True)
class AgentRewardConfig(RewardModelConfig):
    """The settings of the reward `minimind-agent`: those of its reward model. Without `path` there is none, and an episode
    without calls gets no score for its answer."""

    reward: ClassVar[str] = "minimind-agent"


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """The reward `minimind-agent`."""
    yield RewardSpec(
        name="minimind-agent",
        summary="MiniMind 3's agent reward: calls and gt values, or form and reward model without calls; within -3 and 3.",
        target="mm.plugins.rewards.minimind_agent.reward:AgentReward",
        config=AgentRewardConfig,
    )
