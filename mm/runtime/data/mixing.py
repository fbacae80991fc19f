"""Rows of several files mixed in given shares. After any number of rows, no file is a full row away from its share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mm.core.errors import CheckpointError
from mm.runtime.data.order import RowOrder, mix


class Shares:
    """An endless sequence of file numbers in the given shares, which must be positive and add up to 1: the file to take
    each next row from. The algorithm is from R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980.

    After n rows, n_i of them from file i, |n_i - share_i n| <= 1 - 1 / (2k - 2) for k > 1 files. Computed in integers, so
    it is exact.
    """

    def __init__(self, shares: Sequence[Fraction]) -> None:
        if not shares or min(shares) <= 0 or sum(shares) != 1:
            raise ValueError(f"shares must be positive and add up to 1, not {', '.join(map(str, shares))}")
        self.total = math.lcm(*(share.denominator for share in shares))
        self.weights = [int(share * self.total) for share in shares]
        common = math.lcm(*self.weights)
        self._urgency = [common // weight for weight in self.weights]
        self.resume([0] * len(shares))

    def resume(self, counts: Sequence[int]) -> None:
        """Continue after `counts` rows were taken from each file."""
        rows = sum(counts)
        self._owed = [weight * rows - self.total * count for weight, count in zip(self.weights, counts, strict=True)]

    def take(self, count: int) -> list[int]:
        """The file of each of the next `count` rows."""
        return [self._next() for _ in range(count)]

    def _next(self) -> int:
        owed, files = self._owed, len(self._owed)
        for file, weight in enumerate(self.weights):
            owed[file] += weight
        # among the files that one more row does not put too far ahead, take the one whose next row is due first;
        # both sides of the comparisons are multiplied by `scale`
        scale = 2 * files - 2
        limit = self.total * (scale - 1)
        ready = [file for file in range(files) if scale * owed[file] >= self.total] if scale else [0]
        chosen = min(ready, key=lambda file: (limit - scale * owed[file]) * self._urgency[file])
        owed[chosen] -= self.total
        return chosen


class MixedOrder:
    """Rows of several files in the given shares. Each file has its own `RowOrder`, which starts over when it ends.

    `files` holds the row indices of each file. `len` is one epoch: the number of rows of all files together.
    """

    def __init__(self, files: Sequence[np.ndarray], shares: Sequence[Fraction], seed: int) -> None:
        self.shares, self._stream = tuple(shares), Shares(shares)
        start = mix(np.array([seed % (1 << 64)], dtype=np.uint64))
        self.orders = [RowOrder(rows, int(mix(start + np.uint64(i))[0])) for i, rows in enumerate(files)]

    def __len__(self) -> int:
        return sum(map(len, self.orders))

    def take(self, count: int) -> list[int]:
        """The indices of the next `count` rows."""
        files = self._stream.take(count)
        rows = [iter(order.take(files.count(file))) for file, order in enumerate(self.orders)]
        return [next(rows[file]) for file in files]

    def state_dict(self) -> dict[str, Any]:
        """The shares, and the state of each file's order."""
        return {"shares": [str(share) for share in self.shares], "files": [order.state_dict() for order in self.orders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. Raises CheckpointError if the shares, the seed or a number of rows differs."""
        saved, mine = state.get("shares"), [str(share) for share in self.shares]
        if saved != mine:
            before = f"with the shares {', '.join(saved)}" if saved else "without weights"
            raise CheckpointError(f"The order of rows was saved {before}, this run has the shares {', '.join(mine)}.")
        for order, part in zip(self.orders, state["files"], strict=True):
            order.load_state_dict(part)
        self._stream.resume([order.epoch * len(order) + order.position for order in self.orders])


def by_file(rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Ascending row indices, split into one array per file. The files lie end to end; `sizes` has the rows of each."""
    return np.split(rows, np.searchsorted(rows, np.cumsum(sizes)[:-1]))


def first_in_shares(files: Sequence[np.ndarray], shares: Sequence[Fraction], count: int) -> list[int]:
    """The first rows of each file in the given shares, `count` in all, or fewer if a file has too few."""
    order = Shares(shares).take(count)
    return [int(row) for file, rows in enumerate(files) for row in rows[: order.count(file)]]
