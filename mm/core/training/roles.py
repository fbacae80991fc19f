"""Roles: the models of a run by what they are for (policy, reference, critic, teacher, reward)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mm.core.contracts import Metrics, Totals
from mm.core.training.batch import Packed


class Role:
    """A model in its role. Calling it runs the wrapped module's forward, so that every gradient hook sees the step.

    `model` is the architecture's module, `module` what wraps it for several ranks (the same on one rank). A frozen
    role is in `eval()` and has no gradients.
    """

    def __init__(self, name: str, model: nn.Module, *, trainable: bool, module: nn.Module | None = None) -> None:
        self.name, self.model, self.trainable = name, model, trainable
        self.module = module or model
        self._prefix = f"{name}."
        self._auxiliary: list[Any] = []
        model.train(trainable).requires_grad_(trainable)

    def __call__(self, batch: Packed, head: Callable[[Tensor, Tensor], Any]) -> Any:
        """`head(hidden_TE, weight_VE)` inside the model's forward; what an auxiliary loss needs is kept aside."""
        result, auxiliary = self.module(batch, head=head)
        # a forward that nothing is learned from (log-probabilities in `prepare`, a frozen role) has no auxiliary loss
        if auxiliary is not None and self.trainable and torch.is_grad_enabled():
            self._auxiliary.append(auxiliary)
        return result

    def counts(self, batch: Packed) -> dict[str, float]:
        """What the model's auxiliary loss divides by, under names of this role's own: they are summed with others."""
        return {self._prefix + name: value for name, value in self.model.counts(batch).items()}  # type: ignore[operator]

    def auxiliary_metrics(self) -> Metrics:
        """What the model tells about the calls that `auxiliary_loss` will answer; empty where it tells nothing."""
        measure = getattr(self.model, "auxiliary_metrics", None)
        found: Metrics = {}
        for metrics in map(measure, self._auxiliary) if measure else ():
            for name, (total, count) in metrics.items():
                old = found.get(name, (0.0, 0.0))
                found[name] = (old[0] + total.detach(), old[1] + count)
        return found

    def auxiliary_loss(self, totals: Totals) -> Tensor | None:
        """The auxiliary loss of the calls since the last one, or None; added to the loss by the trainer alone."""
        pieces, self._auxiliary = self._auxiliary, []
        own = {name.removeprefix(self._prefix): n for name, n in totals.items() if name.startswith(self._prefix)}
        losses = [self.model.auxiliary_loss(piece, own) for piece in pieces]  # type: ignore[operator]
        found = [loss for loss in losses if loss is not None]
        return sum(found[1:], found[0]) if found else None
