"""DPO and related losses: pairs of answers, compared under the policy and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mm.contracts import Metrics, Packed, PreferenceAlgorithm, Totals, Watch, mean_loss
from mm.plugins.algorithms.dpo import DpoConfig
from mm.plugins.algorithms.dpo.losses import LOSSES


class Dpo(PreferenceAlgorithm):
    """The mean loss of the global batch's pairs. A unit is a pair; its two sequences are the chosen and the rejected answer."""

    config: DpoConfig
    watch: ClassVar[Mapping[str, Watch]] = {
        "chosen_drift": Watch(
            low=-50.0, meaning="even the chosen answers become unlikely: a lower learning rate, and read what the model writes"
        )
    }

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The sum over this pack's pairs, divided by all pairs of the step (1 if there are none)."""
        chosen, rejected = self.pairs(batch)
        loss_P, margin_P = LOSSES[self.config.loss_type](chosen, rejected, self.config)
        loss, metrics = mean_loss(loss_P, totals.units, margin=margin_P, accuracy=margin_P > 0)
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            metrics[f"{name}_logprob"] = (side.policy_P.detach().sum(), side.length_P.sum())
            if "reference" in self.models:
                metrics[f"{name}_drift"] = (side.ratio_P.detach().sum(), float(len(loss_P)))
        return loss, metrics
