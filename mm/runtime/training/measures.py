"""The counts that a loss divides by, the metrics it reports, and the ranges in which they are healthy. Imports no torch."""

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

# what every step counts; no algorithm can use such a name in `counts`, for it is no identifier
_SIZES = ("tokens", "targets", "sequences", "units")


@attrs.frozen(kw_only=True)
class Totals(Mapping[str, float]):
    """The size of a mini-batch, summed over its micro-batches and the ranks: what a loss divides by.

    `tokens` are all tokens, `targets` the learned ones, `sequences` the documents, answers or completions, `units` the rows,
    pairs or completions. `totals["weights"]` is an algorithm's own count of that name, from its `counts`. `micro_batches` is
    their number on the rank that has most.
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
        """Those of a mini-batch that this process has alone."""
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
        """The count of a metric that every pack of every rank has a part of: such counts add up to 1 per step."""
        return 1.0 / (self.micro_batches * self.ranks)

    def __getitem__(self, name: str) -> float:
        """The algorithm's own count of that name. Raises KeyError."""
        return self.counts[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the algorithm's own counts."""
        return iter(self.counts)

    def __len__(self) -> int:
        """How many own counts there are."""
        return len(self.counts)


def mean_loss(each: Tensor, count: float, **means: Tensor) -> tuple[Tensor, Metrics]:
    """The loss that is a mean over the whole step, and its metrics.

    `each` has this micro-batch's losses, one per target, pair or completion; `count` is how many the whole step has
    (`totals.targets`, `totals.units`; 0 counts as 1). `means` are metrics with a value for each of the same; `loss` is one.
    """
    values, size = {"loss": each, **means}, float(len(each))
    return each.sum() / max(1.0, count), {name: (value.detach().sum(), size) for name, value in values.items()}


class Largest(NamedTuple):
    """A metric reported as its maximum over the interval instead of its mean. Ignored if `size` is 0."""

    value: Tensor
    size: float


@attrs.frozen(kw_only=True)
class Watch:
    """The healthy range of a metric, and what leaving it means."""

    meaning: str
    low: float = -math.inf
    high: float = math.inf
