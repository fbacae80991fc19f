"""Next-token prediction, shared by pretrain (every token is a target) and sft (the assistant's tokens are)."""

from __future__ import annotations

from torch import Tensor

from mm.contracts import Algorithm, Metrics, Packed, Totals


class NextToken(Algorithm):
    """The mean negative log-likelihood of the global batch's target tokens."""

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The sum over this pack's targets, divided by all targets of the step (1 if there are none)."""
        total = self.models["policy"].cross_entropy(batch)
        nll = (total.detach(), float(batch.num_targets))
        return total / max(1.0, totals.targets), {"loss": nll, "nll": nll}
