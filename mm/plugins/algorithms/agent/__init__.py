"""Reinforcement learning over several turns with tools."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from mm.contracts import AlgorithmSpec, hookimpl, option, rollout_needs
from mm.plugins.algorithms.grpo import GrpoConfig, like_grpo
from mm.runtime.generation.episodes import MAX_TOTAL_TOKENS, MAX_TURNS
from mm.runtime.training.rollouts.options import at_least_two


@frozen(kw_only=True)
class AgentConfig(GrpoConfig):
    """The bounds of an episode. --max-new-tokens bounds a single turn. --overlong-buffer counts back from the bound that is
    nearer, the turn's or the episode's."""

    num_generations: int = option(4, help="Episodes drawn for each prompt.", within="[1, inf)", validator=at_least_two)
    max_turns: int = option(MAX_TURNS, help="Most turns of the assistant in an episode.", within="[1, inf)")
    max_total_tokens: int = option(
        MAX_TOTAL_TOKENS, help="Longest episode with its prompt and the tools' answers.", within="[2, inf)"
    )


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "agent"."""
    summary = "Reinforcement learning over turns in which the model calls tools and reads their answers."
    yield like_grpo(
        "agent", summary, "mm.plugins.algorithms.agent.algorithm:Agent", AgentConfig, max_length=1024,
        needs=lambda config: rollout_needs(config, data="episode", reference=config.kl_coef > 0, tools=True),
    )  # fmt: skip
