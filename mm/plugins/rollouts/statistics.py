"""Means and deviations of rewards, on the host in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mm.runtime.training.distributed import World


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / max(1, len(values))


def deviation(values: Sequence[float]) -> float:
    """The sample's standard deviation (n - 1), as TRL takes it; 0 of fewer than two."""
    middle = mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def over_ranks(world: World, values: Sequence[float]) -> tuple[float, float]:
    """Mean and (n - 1) deviation of all ranks' values; every rank must call it."""
    found = world.sum({"count": float(len(values)), "sum": sum(values)})
    count = max(1.0, found["count"])
    middle = found["sum"] / count
    squares = world.sum({"squares": sum((v - middle) ** 2 for v in values)})["squares"]
    return middle, math.sqrt(squares / max(1.0, count - 1))
