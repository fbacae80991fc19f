"""The host states that the ranks of a checkpoint saved, for a resume on another number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mm.runtime.data.order import partition


def for_rank(saved: Sequence[Mapping[str, Any]], rank: int, size: int) -> dict[str, Any]:
    """The host state of `rank` of `size` ranks, from those that were saved, by rank. With as many ranks, it is its own.

    The mini-batches that are still to be learned are divided anew, so that none is lost and a step has the same units. The
    metrics of a log interval that the stop cut are rank 0's. State that is the same on all ranks, as that of an algorithm and
    of its data, is taken from the nearest rank that saved.
    """
    if len(saved) == size:
        return dict(saved[rank])
    nearest = saved[min(rank, len(saved) - 1)]
    pending = [_share(units, rank, size) for units in _together([state["pending"] for state in saved])]
    return {**nearest, "pending": pending, "meter": _meter([state["meter"] for state in saved], rank)}


def _together(by_rank: Sequence[Sequence[list[dict[str, Any]]]]) -> list[list[dict[str, Any]]]:
    """The units of all ranks in each mini-batch. All ranks have equally many mini-batches."""
    return [[unit for part in parts for unit in part] for parts in zip(*by_rank, strict=True)]


def _share(units: list[dict[str, Any]], rank: int, size: int) -> list[dict[str, Any]]:
    lengths = [sum(len(sequence["ids"]) for sequence in unit["sequences"]) for unit in units]
    return [units[index] for index in partition(lengths, size)[rank]]


def _meter(by_rank: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """The metrics of all ranks on rank 0; on the others the same names with nothing, since ranks must have equal names."""
    names = dict.fromkeys(name for metrics in by_rank for name in metrics)
    found: dict[str, Any] = {}
    for name in names:
        entries = [metrics[name] for metrics in by_rank if name in metrics]
        is_largest = entries[0][2]
        if rank:
            found[name] = [0.0, 0.0, is_largest]
        elif is_largest:
            total, count = max(((_number(e[0]), _number(e[1])) for e in entries if _number(e[1])), default=(0.0, 0.0))
            found[name] = [total, count, True]
        else:
            found[name] = [sum(_number(e[0]) for e in entries), sum(_number(e[1]) for e in entries), False]
    return found


def _number(value: Tensor | float) -> float:
    return float(value.item()) if isinstance(value, torch.Tensor) else float(value)
