"""Reinforcement learning over several turns with tools."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen
from attrs.validators import gt

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import AlgorithmSpec
from mm.plugins.algorithms.grpo import GrpoConfig
from mm.plugins.rollouts import compared, needs
from mm.runtime.generation.episodes import MAX_TOTAL_TOKENS, MAX_TURNS


@frozen(kw_only=True)
class AgentConfig(GrpoConfig):
    """How long an episode may be. --max-new-tokens bounds a turn, and --overlong-buffer counts back from whichever bound
    is nearer, the turn's or the episode's."""

    num_generations: int = option(4, help="Episodes drawn for each prompt.", validator=compared)
    max_turns: int = option(MAX_TURNS, help="Most turns of the assistant in an episode.", validator=gt(0))
    max_total_tokens: int = option(
        MAX_TOTAL_TOKENS, help="Longest episode with its prompt and the tools' answers.", validator=gt(1)
    )


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """agent."""
    yield AlgorithmSpec(
        name="agent",
        summary="Reinforcement learning over turns in which the model calls tools and reads their answers.",
        target="mm.plugins.algorithms.agent.algorithm:Agent",
        config=AgentConfig,
        needs=lambda config: needs(config, data="episode", reference=config.kl_coef > 0, tools=True),
        defaults={"learning_rate": 1e-6, "global_batch_size": 8, "max_length": 1024},
        starts_from=("sft", "reason", "lora"),
    )
