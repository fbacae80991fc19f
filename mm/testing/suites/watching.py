"""The checks of objects that watch a training: callbacks and trackers."""

from __future__ import annotations

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
from mm.testing.suites.kept import assert_restored, kept, saved
from mm.testing.suites.on_a_device import OnADevice
from mm.testing.suites.running import Checks, about
from mm.testing.suites.training import ShortTraining, UnitStore

_STEPS, _SAVED = 6, 3
_ARGUMENTS: dict[str, tuple[Any, ...]] = {"on_start": (), "on_step": (), "on_evaluate": ({},), "on_log": ({},),
                                          "on_save": (Path(),), "on_end": (None,)}  # fmt: skip


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
        return self._observed[0]

    @cached_property
    def _observed(self) -> tuple[list[Callback], _Observer]:
        """`watched`, and what the attributes and states of these callbacks were."""
        callbacks = self.callbacks()
        observer = _Observer(callbacks)
        self.train([_At("on_end", observer.end), *callbacks, _At("on_start", observer.start)], save_interval=_SAVED)
        return callbacks, observer

    @about(*Callback.events)
    def check_events(self) -> str:
        """Each is a `Callback`; its events are spelled right and take the arguments that they are given."""
        self.require("check_names")  # of a tracker: the names are looked at already
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
        self.train([OnADevice(callback) for callback in self.callbacks()])

    @about("state_dict", "load_state_dict")
    def check_state_round_trip(self) -> None:
        """`state_dict` can be saved like a checkpoint, and another instance restores it."""
        self.require("check_training")
        for one, other in zip(self.watched, self.callbacks(), strict=True):
            saved = _saved(one)
            other.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
            same = _saved(other) == saved
            assert same, f"the state of {type(one).__name__} that was loaded is not the state that was saved"

    @about("state_dict", "load_state_dict")
    def check_changed_attributes(self) -> None:
        """The public attributes that changed from the start to the end of the training are those that the saved state restores,
        whether or not they have had an effect in these few steps."""
        self.require("check_state_round_trip")
        _, observer = self._observed
        for before, after, state, restored in zip(
            observer.before, observer.after, observer.states, self.callbacks(), strict=True
        ):  # fmt: skip
            restored.load_state_dict(state)
            cure = "add it to state_dict and load_state_dict, or let its name begin with _ if it belongs to one process"
            assert_restored(before, after, restored, cure)

    @about("state_dict")
    def check_resume(self) -> str:
        """It watches the rest of a training from a checkpoint, and has the same public attributes at its end as without the
        stop: so `state_dict` has everything that it keeps."""
        self.require("check_changed_attributes")
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


class _Observer:
    """The attributes of callbacks after they have heard of a start and before they hear of the end, and their states then."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self.before, self.after = list[dict[str, Any]](), list[dict[str, Any]]()
        self.states: list[Mapping[str, Any]] = []

    def start(self) -> None:
        """Note the attributes."""
        self.before = [kept(callback) for callback in self._callbacks]

    def end(self) -> None:
        """Note the attributes and the states."""
        self.after = [kept(callback) for callback in self._callbacks]
        self.states = [saved(callback.state_dict) for callback in self._callbacks]


class _At(Callback):
    """Calls a function at an event."""

    def __init__(self, event: str, function: Callable[[], None]) -> None:
        self.name = event  # type: ignore[misc]
        self._function, self._event = function, event

    def on_start(self, run: TrainingView) -> None:
        """See `Callback.on_start`."""
        self._at("on_start")

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """See `Callback.on_end`."""
        self._at("on_end")

    def _at(self, event: str) -> None:
        if event == self._event:
            self._function()


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
