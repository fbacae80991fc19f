"""What is minimised: an algorithm's loss and its models' auxiliary losses, and what both divide by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mm.core.contracts import Algorithm, Metrics, Totals
from mm.core.training.batch import Packed, pack
from mm.core.training.distributed import World
from mm.core.training.roles import Role


class Objective:
    """The one place where an algorithm's loss and those of its models meet."""

    def __init__(self, algorithm: Algorithm, roles: Mapping[str, Role]) -> None:
        self.algorithm, self.roles = algorithm, roles
        self._several = sum(role.trainable for role in roles.values()) > 1

    def totals(self, packs: Sequence[Packed], world: World | None = None) -> dict[str, float]:
        """What the losses of these packs divide by, summed over the ranks of `world` (None: this one alone), with
        `mm.tokens` and `mm.micro`, the packs of the rank that has most."""
        counted: dict[str, float] = {"mm.tokens": float(sum(batch.num_tokens for batch in packs))}
        # an empty pack fixes the names, so that a rank without rows agrees with the others on what is summed
        parts: tuple[Algorithm | Role, ...] = (self.algorithm, *self.roles.values())
        for batch in packs or [pack([])]:
            for part in parts:
                for name, value in part.counts(batch).items():
                    counted[name] = counted.get(name, 0.0) + value
        if world is None:
            return {**counted, "mm.micro": float(len(packs))}
        return {**world.sum(counted), "mm.micro": world.max(len(packs))}

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
