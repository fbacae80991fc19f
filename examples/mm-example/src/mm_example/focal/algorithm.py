"""The focal loss (Lin et al. 2017, arXiv:1708.02002) over the assistant's tokens."""

from __future__ import annotations

from torch import Tensor

from mm.contracts import Algorithm, Metrics, Totals
from mm.runtime.nn.batch import Packed
from mm.runtime.nn.heads import token_logprobs


class Focal(Algorithm):
    """The mean of -(1 - p)^gamma log p over all target tokens of the step."""

    def counts(self, batch: Packed) -> dict[str, float]:
        """What the loss divides by."""
        return {"targets": float(batch.num_targets)}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """This micro-batch's share, divided by the targets of the whole step, however it was cut."""
        logprobs_M = self.models["policy"](
            batch, head=lambda hidden, weight: token_logprobs(hidden[batch.target_index], weight, batch.targets)
        )
        # expm1, since 1 - exp(log p) loses its digits where p is near 1
        total = -((-logprobs_M.expm1()) ** self.config.gamma * logprobs_M).sum()
        count = float(batch.num_targets)
        nll = -logprobs_M.detach().sum()
        return total / max(1.0, totals["targets"]), {"loss": (total.detach(), count), "nll": (nll, count)}
