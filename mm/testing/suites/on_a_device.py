"""A callback's view of a training on a device, whose tensors `on_step` must not read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mm.core.callback import Callback, TrainingView
from mm.runtime.training.roles import Role
from mm.testing.suites.other_device import OtherDevice

_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default)


class OnADevice(Callback):
    """Hands the events on. In `on_step` the callback sees a model on a device whose values must not be read."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        for event in set(self.events) - {"on_step"}:
            setattr(self, event, getattr(callback, event))

    def on_step(self, run: TrainingView) -> None:
        self._callback.on_step(run if run.log_scheduled() else _DeviceView(run))  # type: ignore[arg-type]

    def on_start(self, run: TrainingView) -> None: ...
    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None: ...
    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None: ...
    def on_save(self, run: TrainingView, path: Path) -> None: ...
    def on_end(self, run: TrainingView, error: BaseException | None) -> None: ...


class _DeviceView:
    """A training whose models are on another device, and whose tensors and metrics must not be read."""

    def __init__(self, run: TrainingView) -> None:
        self._run = run
        self.roles = {name: _role_on_device(role) for name, role in run.roles.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def peek(self) -> Mapping[str, float]:
        """Reading the metrics waits for the device."""
        raise AssertionError("on_step reads a tensor of the device: peek() only at a step where run.log_scheduled() is true")


def _role_on_device(role: Role) -> Role:
    found = copy.copy(role)
    found.model = copy.deepcopy(role.model)
    for module in found.model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else _Unread(parameter)  # type: ignore[assignment]
    return found


class _Unread(OtherDevice):
    """A tensor of the device. Reading its values raises AssertionError."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """See `OtherDevice`."""
        to = (kwargs or {}).get("device")
        if func in _READS or (func is torch.ops.aten._to_copy.default and to is not None and torch.device(to).type == "cpu"):
            raise AssertionError("on_step reads a tensor of the device: training would wait for it at each step; read in on_log")
        return super().__torch_dispatch__(func, types, args, kwargs)
