"""What an optimizer step does to the weights: clipping, the rate, and no update once a gradient was not finite."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from mm.core.settings import TrainSettings
from mm.runtime.devices.scaler import Scaler
from mm.runtime.nn.optimizers import build_optimizers, learning_rate
from mm.runtime.training.measures import Metrics
from mm.runtime.training.roles import Role

# a scaler halves its scale at each overflow: this small, no scale would have helped
_SMALLEST_SCALE = 2**-14


class Updates:
    """The optimizers of each trainable role. Without a scaler and with fused optimizers `apply` never synchronises."""

    def __init__(
        self,
        roles: Mapping[str, Role],
        settings: TrainSettings,
        scaler: Scaler | None,
        device: torch.device,
        notes: list[str],
    ) -> None:
        self.scaler, self.roles = scaler, {name: role for name, role in roles.items() if role.trainable}
        # the run's settings with the role's own above them
        self.settings = {name: attrs.evolve(settings, **role.settings) for name, role in self.roles.items()}
        self.optimizers = {name: build_optimizers(role.model, self.settings[name], notes) for name, role in self.roles.items()}
        self._bad = torch.zeros((), device=device)
        self._bad_step = torch.full((), -1, device=device)

    def apply(self, step: int, horizon: int) -> Metrics:
        """One update of every role with the present gradients, which are then dropped. Returns their norms."""
        metrics: Metrics = {}
        for name, optimizers in self.optimizers.items():
            settings = self.settings[name]
            self._prepare(optimizers, learning_rate(step, horizon, settings))
            weights = [p for p in self.roles[name].model.parameters() if p.requires_grad]
            norm = torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm or float("inf")).detach()
            finite = torch.isfinite(norm).float()
            # a step that the scaler skips has no norm
            metrics[f"{name}/grad_norm" if len(self.optimizers) > 1 else "grad_norm"] = (norm.nan_to_num(0, 0, 0), finite)
            self._note(finite, step, metrics)
        for optimizer in (o for optimizers in self.optimizers.values() for o in optimizers):
            self._step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update()
        return metrics

    def failed_step(self, done: int) -> int | None:
        """The first step (from 0) of which nothing was learned because a gradient was not finite; synchronises.

        `done` is the number of steps so far. A scaler passes over single ones: it fails when no scale helps.
        """
        if self.scaler:
            return done - 1 if self.scaler.get_scale() < _SMALLEST_SCALE else None
        return int(self._bad_step.item()) if self._bad.item() else None

    def _prepare(self, optimizers: list[torch.optim.Optimizer], rate: float) -> None:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            if self.scaler:
                self.scaler.unscale_(optimizer)

    def _note(self, finite: Tensor, step: int, metrics: Metrics) -> None:
        """Remember the first non-finite step on the device; from then on no update is applied. A scaler skips its own."""
        bad = 1 - finite
        if self.scaler:
            metrics["overflow"] = (bad, 1.0)
            return
        self._bad_step = torch.where((self._bad == 0) & (bad > 0), step, self._bad_step)
        self._bad = torch.maximum(self._bad, bad)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler:
            self.scaler.step(optimizer)
        elif optimizer.defaults.get("fused"):
            # the fused kernel leaves everything as it is where found_inf is 1, without asking the host
            optimizer.found_inf = self._bad  # type: ignore[attr-defined]
            optimizer.step()
        elif self._bad.item() == 0:
            optimizer.step()
