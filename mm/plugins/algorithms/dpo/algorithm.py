"""The policy's and the reference's opinion of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mm.contracts import Metrics, Totals, Watch
from mm.plugins.algorithms.answers import AnswerAlgorithm
from mm.plugins.algorithms.dpo import DpoConfig
from mm.plugins.algorithms.dpo.losses import LOSSES, Side
from mm.runtime.nn.batch import Packed, sum_by_document


class Dpo(AnswerAlgorithm):
    """The mean loss over the global batch's pairs; a unit is a pair, its sequences the chosen and the rejected answer."""

    config: DpoConfig
    watch: ClassVar[Mapping[str, Watch]] = {
        "chosen_drift": Watch(
            low=-50.0, meaning="even the chosen answers become unlikely: a lower learning rate, and read what the model writes"
        )
    }

    def counts(self, batch: Packed) -> dict[str, float]:
        """Pairs."""
        return {"pairs": float(len(batch.units))}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The sum over this pack's pairs, divided by all pairs of the step (1 where there are none)."""
        policy_N = self.logprobs("policy", batch)
        reference_N = self.reference(batch) if "reference" in self.models else torch.zeros_like(policy_N)
        length_N = sum_by_document(torch.ones_like(batch.targets, dtype=policy_N.dtype), batch)
        sides = zip(*(values_N.view(-1, 2).unbind(1) for values_N in (policy_N, reference_N, length_N)), strict=True)
        chosen, rejected = (Side(*values) for values in sides)
        loss_P, margin_P = LOSSES[self.config.loss_type](chosen, rejected, self.config)
        metrics = self._metrics(loss_P.detach(), margin_P.detach(), chosen, rejected)
        return loss_P.sum() / max(1.0, totals["pairs"]), metrics

    def _metrics(self, loss_P: Tensor, margin_P: Tensor, chosen: Side, rejected: Side) -> Metrics:
        pairs = float(len(loss_P))
        found: Metrics = {
            "loss": (loss_P.sum(), pairs),
            "margin": (margin_P.sum(), pairs),
            "accuracy": ((margin_P > 0).sum().to(loss_P.dtype), pairs),
        }
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            found[f"{name}_logprob"] = (side.policy_P.detach().sum(), side.length_P.sum())
            if "reference" in self.models:
                found[f"{name}_drift"] = (side.ratio_P.detach().sum(), pairs)
        return found
