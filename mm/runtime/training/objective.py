"""The training objective: an algorithm's loss plus its models' auxiliary losses, and the counts that both divide by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mm.runtime.nn.batch import Packed, pack
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Metrics, Totals
from mm.runtime.training.roles import Role

# not an identifier, so that it cannot be the name of an algorithm's count
_TOKENS = "mm.tokens"


class Objective:
    """Adds the loss of an algorithm and the auxiliary losses of its models, the `roles`."""

    def __init__(self, algorithm: Algorithm, roles: Mapping[str, Role]) -> None:
        self.algorithm, self.roles = algorithm, roles
        self._several = sum(role.trainable for role in roles.values()) > 1

    def totals(self, packs: Sequence[Packed], world: World | None = None) -> Totals:
        """The counts that the losses of these packs divide by, summed over the ranks of `world` (None: this rank alone)."""
        counts: dict[str, float] = {_TOKENS: float(sum(batch.num_tokens for batch in packs))}
        # an empty pack gives a rank without rows the same names of counts as the others, which sum by name
        parts: tuple[Algorithm | Role, ...] = (self.algorithm, *self.roles.values())
        for batch in packs or [pack([])]:
            for part in parts:
                for name, value in part.counts(batch).items():
                    counts[name] = counts.get(name, 0.0) + value
        micro_batches = len(packs)
        if world is not None:
            counts, micro_batches = world.sum(counts), world.max(micro_batches)
        return Totals(tokens=counts.pop(_TOKENS), counts=counts, micro_batches=micro_batches)

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """A micro-batch's share of the loss, the auxiliary losses of its forwards included, and metrics as detached
        (sum, count)."""
        loss, metrics = self.algorithm.loss(batch, totals)
        for role in self.roles.values():
            prefix = f"{role.name}/" if self._several else ""
            metrics |= {prefix + name: pair for name, pair in role.auxiliary_metrics().items()}
            auxiliary = role.auxiliary_loss(totals)
            if auxiliary is not None:
                loss = loss + auxiliary
        return loss, metrics
