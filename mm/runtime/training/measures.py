"""The counts by which a loss divides, the metrics that it reports, and their healthy ranges. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.nn.batch import Packed
    from mm.runtime.training.distributed import World

Metrics = dict[str, "tuple[Tensor, Tensor | float]"]

# counted in every step; over the ranks they are summed as "mm.tokens" etc., names that no algorithm uses in its `counts`
_SIZES = ("tokens", "targets", "sequences", "units")


@attrs.frozen(kw_only=True)
class Totals(Mapping[str, float]):
    """The sizes of a mini-batch, summed over its micro-batches and the ranks. A loss divides by one of them.

    `tokens` are all tokens, `targets` the learned ones. `sequences` are documents, `units` what is never split: a pair of a
    preference is 1 unit of 2 sequences, a document or a completion 1 of 1. `totals["weights"]` is an algorithm's own count of
    that name, from its `counts`. `micro_batches` is the largest number on any rank.
    """

    tokens: float = 0.0
    targets: float = 0.0
    sequences: float = 0.0
    units: float = 0.0
    counts: Mapping[str, float] = attrs.field(factory=dict)
    micro_batches: int = 1
    ranks: int = 1

    @classmethod
    def of(cls, packs: Sequence[Packed], counts: Mapping[str, float] | None = None) -> Totals:
        """The totals of these packs, on this process alone."""
        return cls(
            tokens=float(sum(batch.num_tokens for batch in packs)), targets=float(sum(batch.num_targets for batch in packs)),
            sequences=float(sum(len(batch.lengths) for batch in packs)), units=float(sum(len(batch.units) for batch in packs)),
            counts=counts or {}, micro_batches=len(packs),
        )  # fmt: skip

    def over_ranks(self, world: World) -> Totals:
        """The sums over all ranks. Every rank must call it, with the same names in `counts`."""
        sums = world.sum({**self.counts, **{f"mm.{name}": getattr(self, name) for name in _SIZES}})
        sizes = {name: sums.pop(f"mm.{name}") for name in _SIZES}
        return Totals(**sizes, counts=sums, micro_batches=world.max(self.micro_batches), ranks=world.size)

    @property
    def share(self) -> float:
        """The count of a metric whose sum over all micro-batches and ranks is the step's value: such counts add up to 1."""
        return 1.0 / (self.micro_batches * self.ranks)

    def __getitem__(self, name: str) -> float:
        """The algorithm's own count of that name. Raises KeyError."""
        return self.counts[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the algorithm's own counts."""
        return iter(self.counts)

    def __len__(self) -> int:
        """The number of the algorithm's own counts."""
        return len(self.counts)


def mean_loss(each: Tensor, count: float, **means: Tensor) -> tuple[Tensor, Metrics]:
    """(this micro-batch's share of a loss that is a mean over the whole step; its metrics).

    `each` has this micro-batch's losses, one per target, pair or completion. `count` is their number in the whole step
    (`totals.targets` or `totals.units`; 0 counts as 1). `means` are further metrics, each with as many values as `each`; `loss`
    is added to them.
    """
    values, size = {"loss": each, **means}, float(len(each))
    return each.sum() / max(1.0, count), {name: (value.detach().sum(), size) for name, value in values.items()}


class Largest(NamedTuple):
    """A metric reported as its maximum over the interval instead of its mean. Ignored if `size` is 0."""

    value: Tensor
    size: float


@attrs.frozen(kw_only=True)
class Watch:
    """The healthy range of a metric, and what leaving it means.

    With `unless`, a metric and a value, leaving the range means nothing while that metric is at most that value.
    """

    meaning: str
    low: float = -math.inf
    high: float = math.inf
    unless: tuple[str, float] | None = None

    def is_met(self, name: str, metrics: Mapping[str, float]) -> bool:
        """True if the metric `name` is in its range, was not measured, or does not matter."""
        other, bound = self.unless or ("", -math.inf)
        return self.low <= metrics.get(name, self.low) <= self.high or metrics.get(other, math.inf) <= bound
