"""The objective: an algorithm's loss plus its models' auxiliary losses, and the totals by which both are divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mm.runtime.nn.batch import Packed, pack
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Metrics, Totals
from mm.runtime.training.roles import Role


class Objective:
    """Adds the auxiliary losses and metrics of the models to those of the algorithm."""

    def __init__(self, algorithm: Algorithm, roles: Mapping[str, Role]) -> None:
        self.algorithm, self.roles = algorithm, roles
        self._several = sum(role.trainable for role in roles.values()) > 1

    def totals(self, packs: Sequence[Packed], world: World | None = None) -> Totals:
        """The totals of these packs, summed over the ranks of `world` (None: this rank alone)."""
        counts: dict[str, float] = {}
        # an empty pack has all names, so that a rank without rows sums the same ones as the others
        parts: tuple[Algorithm | Role, ...] = (self.algorithm, *self.roles.values())
        for batch in packs or [pack([])]:
            for part in parts:
                for name, value in part.counts(batch).items():
                    counts[name] = counts.get(name, 0.0) + value
        totals = Totals.of(packs, counts)
        return totals if world is None else totals.over_ranks(world)

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """(a micro-batch's share of the loss, including the auxiliary losses of its forwards; its metrics, detached (sum,
        count))."""
        loss, metrics = self.algorithm.loss(batch, totals)
        for role in self.roles.values():
            prefix = f"{role.name}/" if self._several else ""
            metrics |= {prefix + name: pair for name, pair in role.auxiliary_metrics().items()}
            auxiliary = role.auxiliary_loss(totals)
            if auxiliary is not None:
                loss = loss + auxiliary
        return loss, metrics
