"""What a loss divides by, the metrics it reports, and the ranges in which they are healthy. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, "tuple[Tensor, Tensor | float]"]


@attrs.frozen(kw_only=True)
class Totals(Mapping[str, float]):
    """The counts of a mini-batch, summed over its micro-batches and the ranks: `totals["targets"]` for what `counts` names so.

    `tokens` is the sum of all tokens; `micro_batches` the number of micro-batches on the rank that has most.
    """

    counts: Mapping[str, float]
    tokens: float = 0.0
    micro_batches: int = 1

    def __getitem__(self, name: str) -> float:
        """The count of that name. Raises KeyError."""
        return self.counts[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the counts."""
        return iter(self.counts)

    def __len__(self) -> int:
        """How many counts there are."""
        return len(self.counts)


class Largest(NamedTuple):
    """A metric of which the largest `value` of the interval is told instead of the mean; one of `size` 0 does not count."""

    value: Tensor
    size: float


@attrs.frozen(kw_only=True)
class Watch:
    """The range in which a metric is well, and what it means when it leaves that."""

    meaning: str
    low: float = -math.inf
    high: float = math.inf
