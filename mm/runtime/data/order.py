"""The order of the rows, their division among ranks, and the held-out rows: all depend only on a seed and on content."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mm.core.errors import CheckpointError


class Order(Protocol):
    """An endless sequence of row indices; `len` is the length of an epoch. All ranks take the same rows from it."""

    def __len__(self) -> int: ...

    def take(self, count: int) -> list[int]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class RowOrder:
    """An endless sequence of row indices, in a new order each epoch. It does not depend on the number of ranks.

    `rows` are the indices, or their number n for 0 to n - 1. `epoch` counts from 0; `position` is the number of rows that
    were taken from it.
    """

    def __init__(self, rows: int | Sequence[int] | np.ndarray, seed: int) -> None:
        self.rows = np.arange(rows) if isinstance(rows, int) else np.asarray(rows, dtype=np.int64)
        if not len(self.rows):
            raise ValueError("there are no rows to order")
        self.seed, self.epoch, self.position = seed, 0, 0
        self._sorted: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> list[int]:
        """The indices of the next `count` rows; the end of an epoch is followed by the start of the next."""
        taken: list[int] = []
        while len(taken) < count:
            if self.position == len(self.rows):
                self.epoch, self.position = self.epoch + 1, 0
            part = self._permutation()[self.position : self.position + count - len(taken)]
            taken += self.rows[part].tolist()
            self.position += len(part)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position, and the seed and number of rows that they belong to."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "rows": len(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. Raises CheckpointError if the seed or the number of rows differs."""
        if "shares" in state:
            shares = ", ".join(state["shares"])
            raise CheckpointError(f"The order of rows was saved with the shares {shares}, this run has no weights.")
        for name, mine in (("seed", self.seed), ("rows", len(self.rows))):
            if state[name] != mine:
                raise CheckpointError(f"The order of rows was saved with {name} {state[name]}, this run has {mine}.")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _permutation(self) -> np.ndarray:
        if self._sorted is None or self._sorted[0] != self.epoch:
            self._sorted = self.epoch, permutation(len(self.rows), self.seed, self.epoch)
        return self._sorted[1]


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64, read-only: the indices sorted by a hash of (seed, epoch, index).

    Not NumPy's shuffle, which may change between versions: a run must resume in the same order under another one.
    """
    start = mix(np.array([seed % (1 << 64)], dtype=np.uint64))
    start = mix(start + np.uint64(epoch))
    order = np.argsort(mix(np.arange(count, dtype=np.uint64) + start), kind="stable")
    order.flags.writeable = False
    return order


def partition(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Divides units among ranks, balanced in tokens: the longest first, each to the rank with the fewest tokens so far.

    `lengths` are the tokens of each unit. Returns the ascending indices of each rank's units; every index occurs once. A
    rank may get none if there are fewer units than ranks.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        heapq.heappush(loads, (load + int(lengths[index]), rank))
    return [sorted(share) for share in shares]


class _Hashed(Protocol):
    hashes: np.ndarray


def split_held_out(store: _Hashed, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit indices to train on, and held-out ones to evaluate on: int64, ascending.

    The side of a unit depends only on the seed and on the hash of its row's content. So equal documents, and all parts of
    a long one, are on the same side, and adding data does not move old rows. If `fraction` is above 0 and there are at
    least two distinct rows, neither side is empty.
    """
    if fraction <= 0:
        return np.arange(len(store.hashes)), np.arange(0)
    keys = mix(store.hashes ^ mix(np.array([seed % (1 << 64)], dtype=np.uint64)))
    distinct = np.unique(keys)
    limit = min(int(fraction * 2**64), 2**64 - 1)
    is_held_out = keys < np.uint64(limit)
    if len(distinct) > 1 and not is_held_out.any():
        is_held_out = keys == distinct[0]
    elif len(distinct) > 1 and is_held_out.all():
        is_held_out = keys != distinct[-1]
    elif len(distinct) == 1:
        is_held_out = np.zeros(len(keys), dtype=bool)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection on 64 bits without visible structure."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
