"""REINFORCE leave-one-out."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import AlgorithmSpec
from mm.plugins.algorithms.grpo import like_grpo


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """rloo."""
    summary = "Reinforcement learning against the mean of a group's other completions."
    yield like_grpo("rloo", summary, "mm.plugins.algorithms.rloo.algorithm:Rloo")
