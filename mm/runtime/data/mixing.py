"""Rows of several files in given shares, met within one row at any point of the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mm.core.errors import CheckpointError
from mm.runtime.data.order import RowOrder, mix


class Shares:
    """Which file gives the next row, without end: the chairman assignment of R. Tijdeman (The chairman assignment
    problem, Discrete Mathematics 32, 1980).

    After n rows file i has given n_i with |n_i - share_i n| <= 1 - 1 / (2k - 2) for k > 1 files. Exact: integers only.
    """

    def __init__(self, shares: Sequence[Fraction]) -> None:
        if not shares or min(shares) <= 0 or sum(shares) != 1:
            raise ValueError(f"shares must be positive and add up to 1, not {', '.join(map(str, shares))}")
        self.total = math.lcm(*(share.denominator for share in shares))
        self.weights = [int(share * self.total) for share in shares]
        common = math.lcm(*self.weights)
        self._urgency = [common // weight for weight in self.weights]
        self.given([0] * len(shares))

    def given(self, counts: Sequence[int]) -> None:
        """Go on after the files have given that many rows each."""
        rows = sum(counts)
        self._owed = [weight * rows - self.total * count for weight, count in zip(self.weights, counts, strict=True)]

    def take(self, count: int) -> list[int]:
        """The files of the next rows."""
        return [self._next() for _ in range(count)]

    def _next(self) -> int:
        owed, files = self._owed, len(self._owed)
        for file, weight in enumerate(self.weights):
            owed[file] += weight
        # of those that a row would not bring too far ahead, the one that must have it first; all times `scale`
        scale = 2 * files - 2
        limit = self.total * (scale - 1)
        ready = [file for file in range(files) if scale * owed[file] >= self.total] if scale else [0]
        chosen = min(ready, key=lambda file: (limit - scale * owed[file]) * self._urgency[file])
        owed[chosen] -= self.total
        return chosen


class MixedOrder:
    """Rows of several files, each in an order of its own that begins again when it ends, in shares of the whole.

    `files` are the indices of each file's rows. An epoch is as many rows as the files hold together.
    """

    def __init__(self, files: Sequence[np.ndarray], shares: Sequence[Fraction], seed: int) -> None:
        self.shares, self._stream = tuple(shares), Shares(shares)
        start = mix(np.array([seed % (1 << 64)], dtype=np.uint64))
        self.orders = [RowOrder(rows, int(mix(start + np.uint64(i))[0])) for i, rows in enumerate(files)]

    def __len__(self) -> int:
        return sum(map(len, self.orders))

    def take(self, count: int) -> list[int]:
        """The next rows."""
        files = self._stream.take(count)
        rows = [iter(order.take(files.count(file))) for file, order in enumerate(self.orders)]
        return [next(rows[file]) for file in files]

    def state_dict(self) -> dict[str, Any]:
        """Where each file's order stands, and the shares."""
        return {"shares": [str(share) for share in self.shares], "files": [order.state_dict() for order in self.orders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises CheckpointError when shares, seed or numbers of rows differ."""
        saved, mine = state.get("shares"), [str(share) for share in self.shares]
        if saved != mine:
            before = f"with the shares {', '.join(saved)}" if saved else "without weights"
            raise CheckpointError(f"The order of rows was saved {before}, this run has the shares {', '.join(mine)}.")
        for order, part in zip(self.orders, state["files"], strict=True):
            order.load_state_dict(part)
        self._stream.given([order.epoch * len(order) + order.position for order in self.orders])


def by_file(rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Rising indices into files that lie end to end, as one array a file; `sizes` are all rows of each file."""
    return np.split(rows, np.searchsorted(rows, np.cumsum(sizes)[:-1]))


def first_in_shares(files: Sequence[np.ndarray], shares: Sequence[Fraction], count: int) -> list[int]:
    """The first rows of each file, `count` in all, in shares; a file that has fewer gives what it has."""
    wanted = Shares(shares).take(count)
    return [int(row) for file, rows in enumerate(files) for row in rows[: wanted.count(file)]]
