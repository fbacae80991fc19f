"""The focal loss (Lin et al. 2017, arXiv:1708.02002) over the assistant's tokens."""

from __future__ import annotations

from torch import Tensor

from mm.contracts import Algorithm, Metrics, Packed, Totals, mean_loss


class Focal(Algorithm):
    """The mean of -(1 - p)^gamma log p over all target tokens of the step."""

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """This micro-batch's share, divided by the targets of the whole step, however it was cut."""
        logprobs_M = self.models["policy"].logprobs(batch)
        # expm1, since 1 - exp(log p) loses its digits where p is near 1
        focal_M = -((-logprobs_M.expm1()) ** self.config.gamma) * logprobs_M
        return mean_loss(focal_M, totals.targets, nll=-logprobs_M)
