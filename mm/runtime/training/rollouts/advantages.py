"""Baselines and scales of advantages, as plain functions of rewards. They compute on the host, in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm.runtime.training.distributed import World


def mean(values: Sequence[float]) -> float:
    """The mean; 0 if there are no values."""
    return sum(values) / max(1, len(values))


def deviation(values: Sequence[float], freedom: int = 1) -> float:
    """The standard deviation with the divisor n - `freedom`: 1 gives that of a sample, as in TRL, 0 that of a population. 0 for
    fewer than two values."""
    middle = mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - freedom)) if len(values) > 1 else 0.0


def mean_and_deviation(world: World, values: Sequence[float], freedom: int = 1) -> tuple[float, float]:
    """The mean and the standard deviation of all ranks' values, the latter with the divisor n - `freedom`. Every rank must call
    it."""
    sums = world.sum({"count": float(len(values)), "sum": sum(values)})
    count = max(1.0, sums["count"])
    middle = sums["sum"] / count
    squares = world.sum({"squares": sum((v - middle) ** 2 for v in values)})["squares"]
    return middle, math.sqrt(squares / max(1.0, count - freedom))


def clip(values: Sequence[float], limit: float) -> list[float]:
    """Each value, at most `limit` and at least -`limit`."""
    return [max(-limit, min(limit, value)) for value in values]


def subtract_mean(rewards: Sequence[float]) -> list[float]:
    """Each reward of a group minus the group's mean."""
    middle = mean(rewards)
    return [reward - middle for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """Each reward of a group minus the mean of the others; 0 for a group of one."""
    total, others = sum(rewards), len(rewards) - 1
    return [reward - (total - reward) / others if others else 0.0 for reward in rewards]


def normalise(world: World, values: Sequence[float], eps: float) -> list[float]:
    """(value - mean) / (deviation + eps) over the values of all ranks. Every rank must call it."""
    middle, spread = mean_and_deviation(world, values)
    return [(value - middle) / (spread + eps) for value in values]


def regroup(values: Sequence[float], groups: Sequence[Sequence[object]]) -> list[list[float]]:
    """The flat sequence of values, split into groups of the same sizes as `groups`."""
    left = iter(values)
    return [[next(left) for _ in group] for group in groups]
