"""What is minimised: an algorithm's loss and its models' auxiliary losses, and what both divide by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mm.runtime.nn.batch import Packed, pack
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Metrics, Totals
from mm.runtime.training.roles import Role

# no algorithm can use this name: it is no identifier
_TOKENS = "mm.tokens"


class Objective:
    """The one place where an algorithm's loss and those of its models meet."""

    def __init__(self, algorithm: Algorithm, roles: Mapping[str, Role]) -> None:
        self.algorithm, self.roles = algorithm, roles
        self._several = sum(role.trainable for role in roles.values()) > 1

    def totals(self, packs: Sequence[Packed], world: World | None = None) -> Totals:
        """What the losses of these packs divide by, summed over the ranks of `world` (None: this rank alone)."""
        counts: dict[str, float] = {_TOKENS: float(sum(batch.num_tokens for batch in packs))}
        # an empty pack fixes the names, so that a rank without rows agrees with the others on what is summed
        parts: tuple[Algorithm | Role, ...] = (self.algorithm, *self.roles.values())
        for batch in packs or [pack([])]:
            for part in parts:
                for name, value in part.counts(batch).items():
                    counts[name] = counts.get(name, 0.0) + value
        most = len(packs)
        if world is not None:
            counts, most = world.sum(counts), world.max(most)
        return Totals(tokens=counts.pop(_TOKENS), counts=counts, micro_batches=most)

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """A micro-batch's share of the loss, with the auxiliary losses of the forwards that it took, and metrics as
        detached (sum, count)."""
        loss, metrics = self.algorithm.loss(batch, totals)
        for role in self.roles.values():
            prefix = f"{role.name}/" if self._several else ""
            metrics |= {prefix + name: pair for name, pair in role.auxiliary_metrics().items()}
            auxiliary = role.auxiliary_loss(totals)
            if auxiliary is not None:
                loss = loss + auxiliary
        return loss, metrics
