"""REINFORCE leave-one-out (RLOO): its options and record."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from mm.contracts import AlgorithmSpec, hookimpl, option
from mm.plugins.algorithms.grpo import SurrogateConfig, like_grpo, surrogate
from mm.runtime.training.rollouts.options import at_least_two


@frozen(kw_only=True)
class RlooConfig(SurrogateConfig):
    """A completion counts as one action: the losses of its tokens are summed and divided by a constant, not by its length."""

    num_generations: int = option(8, help="Completions drawn for each prompt.", within="[1, inf)", validator=at_least_two)
    loss_type: str = surrogate("dr_grpo")


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "rloo"."""
    summary = "Reinforcement learning against the mean of a group's other completions."
    yield like_grpo("rloo", summary, "mm.plugins.algorithms.rloo.algorithm:Rloo", RlooConfig)
