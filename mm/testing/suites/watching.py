"""The checks of objects that watch a training: callbacks and trackers."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.core.callback import Callback, TrainingView
from mm.runtime.nn.batch import Packed
from mm.runtime.nn.model import Model
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.measures import Metrics, Totals, mean_loss
from mm.runtime.training.roles import Role
from mm.testing.suites.author import assert_spelled
from mm.testing.suites.other_device import OtherDevice
from mm.testing.suites.running import Checks, about
from mm.testing.suites.training import ShortTraining, UnitStore

_STEPS, _SAVED = 6, 3
_ARGUMENTS: dict[str, tuple[Any, ...]] = {"on_start": (), "on_step": (), "on_evaluate": ({},), "on_log": ({},),
                                          "on_save": (Path(),), "on_end": (None,)}  # fmt: skip
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default)


class WatchingChecks(Checks):
    """The checks of callbacks. A subclass says how they are made, for a run in `folder`: new ones at each call, in one order.

    `make_model()` makes the model that is trained, `store` are its rows.
    """

    make_model: Callable[[], Model]
    store: UnitStore
    tokenizer: Tokenizer
    folder: Path

    def callbacks(self) -> list[Callback]:
        """New callbacks. Raises Skip if there are none."""
        raise NotImplementedError

    def train(self, callbacks: Sequence[Callback], **settings: int) -> ShortTraining:
        """A short training that these watch, at its end."""
        roles = {"policy": Role("policy", self.make_model(), trainable=True)}
        training = ShortTraining(
            lambda roles, more_rows: _NextToken(None, roles, None),  # type: ignore[arg-type]
            roles, self.store, self.tokenizer, self.folder / "checkpoints", steps=_STEPS, callbacks=callbacks, **settings,
        )  # fmt: skip
        training.fit()
        return training

    @cached_property
    def watched(self) -> list[Callback]:
        """Callbacks that have watched a training from its start to its end, with a checkpoint in the middle."""
        callbacks = self.callbacks()
        self.train(callbacks, save_interval=_SAVED)
        return callbacks

    @about(*Callback.events)
    def check_events(self) -> str:
        """Each is a `Callback`; its events are spelled right and take the arguments that they are given."""
        names = set()
        for callback in self.callbacks():
            assert isinstance(callback, Callback), f"a {type(callback).__name__} is not a subclass of mm.contracts.Callback"
            assert_spelled(self.author, type(callback))
            for event, arguments in _ARGUMENTS.items():
                if getattr(type(callback), event) is not getattr(Callback, event):
                    names.add(event)
                    _check_signature(callback, event, arguments)
        assert names, "it overrides no event, so that it sees nothing"
        return ", ".join(sorted(names))

    @about(*Callback.events)
    def check_training(self) -> str:
        """It watches a training with an evaluation, log lines and a checkpoint, and raises nothing."""
        self.require("check_events")
        return ", ".join(type(callback).__name__ for callback in self.watched)

    @about("on_step")
    def check_on_step_reads_no_tensor(self) -> None:
        """`on_step` reads no tensor of the device between log lines, where each reading would make training wait."""
        self.require("check_training")
        self.train([_OnADevice(callback) for callback in self.callbacks()])

    @about("state_dict", "load_state_dict")
    def check_state_round_trip(self) -> None:
        """`state_dict` can be saved like a checkpoint, and another instance restores it."""
        self.require("check_training")
        for one, other in zip(self.watched, self.callbacks(), strict=True):
            saved = _saved(one)
            other.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
            same = _saved(other) == saved
            assert same, f"the state of {type(one).__name__} that was loaded is not the state that was saved"

    @about("state_dict")
    def check_resume(self) -> str:
        """It watches the rest of a training from a checkpoint, and has the same public attributes at its end as without the
        stop: so `state_dict` has everything that it keeps."""
        self.require("check_state_round_trip")
        watched, resumed = self.watched, self.callbacks()
        self.train(resumed, resume_at=_SAVED)
        for one, other in zip(watched, resumed, strict=True):
            before, after = _kept(one), _kept(other)
            differ = [name for name in before if name not in after or after[name] != before[name]]
            if differ:
                name, values = differ[0], (after.get(differ[0]), before[differ[0]])
                is_now = "{}.{} is {!r} after a resume, {!r} without one".format(type(one).__name__, name, *values)
                raise AssertionError(f"{is_now}: is it missing in state_dict? (A name with _ before it belongs to one process.)")
        return f"at step {_SAVED} of {_STEPS}"


def _check_signature(callback: Callback, event: str, arguments: tuple[Any, ...]) -> None:
    try:
        inspect.signature(getattr(callback, event)).bind(None, *arguments)
    except TypeError as error:
        expected = inspect.signature(getattr(Callback, event))
        raise AssertionError(f"{event} cannot be called as {event}{expected}: {error}".replace("(self, ", "(")) from None


def _saved(callback: Callback) -> bytes:
    buffer = io.BytesIO()
    torch.save(callback.state_dict(), buffer)
    return buffer.getvalue()


def _kept(callback: Callback) -> dict[str, Any]:
    """The public attributes with counts, texts and collections of them; times are not the same twice."""
    return {name: value for name, value in vars(callback).items() if name[0] != "_" and _is_kept(value)}


def _is_kept(value: Any) -> bool:
    if isinstance(value, list | tuple | set):
        return all(_is_kept(item) for item in value)
    if isinstance(value, dict):
        return all(_is_kept(item) for item in value.values())
    return isinstance(value, int | str)


class _NextToken(Algorithm):
    """The likelihood of the next token."""

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        return mean_loss(-self.models["policy"].logprobs(batch), totals.targets)


class _OnADevice(Callback):
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
