"""Next-token prediction, shared by pretrain (every token is a target) and sft (the assistant's tokens are)."""

from __future__ import annotations

from torch import Tensor

from mm.contracts import Algorithm, Metrics, Totals
from mm.runtime.nn.batch import Packed
from mm.runtime.nn.heads import linear_cross_entropy


class NextToken(Algorithm):
    """The mean negative log-likelihood over the global batch's target tokens."""

    def counts(self, batch: Packed) -> dict[str, float]:
        """Target tokens."""
        return {"targets": float(batch.num_targets)}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """Sum over this pack's targets, divided by all targets of the step (1 where there are none)."""

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            # index_select: indexing with [] is 6 times as slow on a CPU, forward and backward
            return linear_cross_entropy(hidden.index_select(0, batch.target_index), weight, batch.targets)

        total = self.models["policy"](batch, head=head)
        nll = (total.detach(), float(batch.num_targets))
        return total / max(1.0, totals["targets"]), {"loss": nll, "nll": nll}
