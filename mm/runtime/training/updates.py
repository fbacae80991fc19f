"""The update of the weights: gradient clipping, the learning rate, and no more updates after a non-finite gradient."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mm.core.settings import TrainSettings
from mm.runtime.devices.backend import Backend
from mm.runtime.devices.scaler import Scaler
from mm.runtime.nn.optimizers import build_optimizers, learning_rate
from mm.runtime.training.measures import Metrics
from mm.runtime.training.roles import Role
from mm.runtime.training.sharding import whole

# a scaler halves its scale at each overflow; once it is below this, no scale helps
_SMALLEST_SCALE = 2**-14


class Updates:
    """The optimizers of each trainable role. `apply` never synchronises if they are fused and there is no scaler."""

    def __init__(
        self,
        roles: Mapping[str, Role],
        settings: TrainSettings,
        scaler: Scaler | None,
        device: torch.device,
        backend: Backend,
    ) -> None:
        self.scaler, self.roles = scaler, {name: role for name, role in roles.items() if role.trainable}
        # the run's settings, overridden by the role's own
        self.settings = {name: attrs.evolve(settings, **role.settings) for name, role in self.roles.items()}
        # a chip that does not compute in bfloat16 by default only emulates it
        products = torch.bfloat16 if backend.default_dtype() == "bf16" else torch.float32
        self.optimizers = {
            name: build_optimizers(role.model, self.settings[name], backend.notes, products) for name, role in self.roles.items()
        }
        self._failed = torch.zeros((), device=device)
        self._failed_step = torch.full((), -1, device=device)

    def apply(self, step: int, horizon: int) -> Metrics:
        """Update every role with the accumulated gradients, then clear these. Returns each role's gradient norm before clipping.

        `step` counts from 0 and, with `horizon`, sets the learning rate.
        """
        metrics: Metrics = {}
        for name, optimizers in self.optimizers.items():
            settings = self.settings[name]
            self._prepare(optimizers, learning_rate(step, horizon, settings))
            weights = [p for p in self.roles[name].model.parameters() if p.requires_grad]
            norm = whole(get_total_norm([p.grad for p in weights if p.grad is not None])).detach()
            clip_grads_with_norm_(weights, settings.clip_norm or float("inf"), norm)
            finite = torch.isfinite(norm).float()
            # a step that the scaler skips has a count of 0: it adds nothing to the mean
            metrics[f"{name}/grad_norm" if len(self.optimizers) > 1 else "grad_norm"] = (norm.nan_to_num(0, 0, 0), finite)
            self._record(finite, step, metrics)
        for optimizer in (o for optimizers in self.optimizers.values() for o in optimizers):
            self._step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update()
        return metrics

    def failed_step(self, done: int) -> int | None:
        """The first step (from 0) that was not applied because a gradient was not finite, or None. Synchronises.

        `done` is the number of steps so far. With a scaler, which skips single steps, it is the last step if no scale helps.
        """
        if self.scaler:
            return done - 1 if self.scaler.get_scale() < _SMALLEST_SCALE else None
        return int(self._failed_step.item()) if self._failed.item() else None

    def _prepare(self, optimizers: list[torch.optim.Optimizer], rate: float) -> None:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            if self.scaler:
                self.scaler.unscale_(optimizer)

    def _record(self, finite: Tensor, step: int, metrics: Metrics) -> None:
        """Record the first non-finite step on the device; no update is applied from there on. A gradient scaler skips such steps
        itself, and they are only counted as `overflow`."""
        overflow = 1 - finite
        if self.scaler:
            earlier = metrics.get("overflow", (overflow, 1.0))[0]  # that of another role
            metrics["overflow"] = (overflow.maximum(torch.as_tensor(earlier)), 1.0)
            return
        self._failed_step = torch.where((self._failed == 0) & (overflow > 0), step, self._failed_step)
        self._failed = torch.maximum(self._failed, overflow)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler:
            self.scaler.step(optimizer)
        elif optimizer.defaults.get("fused"):
            # the fused kernel changes nothing if found_inf is 1, without a synchronisation
            optimizer.found_inf = self._failed  # type: ignore[attr-defined]
            optimizer.step()
        elif self._failed.item() == 0:
            optimizer.step()
