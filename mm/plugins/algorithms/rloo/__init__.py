"""REINFORCE leave-one-out."""

from collections.abc import Iterable

from attrs import frozen

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import AlgorithmSpec
from mm.plugins.algorithms.grpo import SurrogateConfig, like_grpo, surrogate
from mm.plugins.rollouts import compared


@frozen(kw_only=True)
class RlooConfig(SurrogateConfig):
    """A completion as one action: its tokens are summed, and divided by a constant alone."""

    num_generations: int = option(8, help="Completions drawn for each prompt.", validator=compared)
    loss_type: str = surrogate("dr_grpo")


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """rloo."""
    summary = "Reinforcement learning against the mean of a group's other completions."
    yield like_grpo("rloo", summary, "mm.plugins.algorithms.rloo.algorithm:Rloo", RlooConfig)
