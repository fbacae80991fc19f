"""REINFORCE++: its record."""

from collections.abc import Iterable

from mm.contracts import AlgorithmSpec, hookimpl
from mm.plugins.algorithms.grpo import SurrogateConfig, like_grpo


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "reinforce-pp"."""
    summary = "Reinforcement learning against the mean of the whole rollout (REINFORCE++)."
    yield like_grpo("reinforce-pp", summary, "mm.plugins.algorithms.reinforce_pp.algorithm:ReinforcePlusPlus", SurrogateConfig)
