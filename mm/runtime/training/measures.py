"""The counts that a loss divides by, the metrics it reports, and the healthy ranges of these. Imports no torch."""

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
    """The counts of a mini-batch by the names that `Algorithm.counts` gives them, summed over its micro-batches and the ranks:
    `totals["targets"]`.

    `tokens` is the number of all tokens; `micro_batches` is the largest number of micro-batches on any rank.
    """

    counts: Mapping[str, float]
    tokens: float = 0.0
    micro_batches: int = 1

    def __getitem__(self, name: str) -> float:
        """The count of that name. Raises KeyError if there is none."""
        return self.counts[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the counts."""
        return iter(self.counts)

    def __len__(self) -> int:
        """The number of counts."""
        return len(self.counts)


class Largest(NamedTuple):
    """A metric reported as its maximum over the interval instead of its mean. A value of `size` 0 is ignored."""

    value: Tensor
    size: float


@attrs.frozen(kw_only=True)
class Watch:
    """The healthy range of a metric, and what leaving it means."""

    meaning: str
    low: float = -math.inf
    high: float = math.inf
