"""What a training step reads and changes, without the loop that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mm.core.callback import Callback
from mm.core.settings import TrainSettings
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack, split_by_tokens
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.distributed import World
from mm.runtime.training.feed import Feed
from mm.runtime.training.measures import Metrics, Totals
from mm.runtime.training.metrics import Meter
from mm.runtime.training.objective import Objective
from mm.runtime.training.roles import Role
from mm.runtime.training.signals import StopFlag
from mm.runtime.training.updates import Updates


class TrainState:
    """One training as it stands. The trainer runs the loop over it, checkpoints save it, callbacks see it as a `TrainingView`.

    `step` counts optimizer steps and `horizon` is where the schedule ends; `evaluated` is the step of the last evaluation
    (-1: none), `tokens` and `seconds` are totals of the run. `pending` are mini-batches that `prepare` made and no step has
    used yet.
    """

    def __init__(
        self,
        *,
        settings: TrainSettings,
        backend: Backend,
        world: World,
        roles: dict[str, Role],
        algorithm: Algorithm,
        feed: Feed,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.settings, self.backend, self.world = settings, backend, world
        self.roles, self.algorithm, self.feed, self.callbacks = roles, algorithm, feed, list(callbacks)
        self.objective = Objective(algorithm, roles)
        self.device = backend.device(world.local_rank)
        self.dtype = backend.default_dtype() if settings.dtype == "auto" else settings.dtype
        self.scaler = backend.scaler(self.dtype)
        self.updates = Updates(roles, settings, self.scaler, self.device, backend.notes)
        self.meter = Meter()
        self.stop = StopFlag()
        self.horizon = settings.max_steps or feed.steps(settings.epochs)
        self.step, self.evaluated, self.tokens, self.seconds = 0, -1, 0, 0.0
        self.pending: list[list[Unit]] = []

    def micro_batches(self, units: list[Unit]) -> list[Packed]:
        """The packs of a mini-batch, on the host."""
        return [pack(group) for group in split_by_tokens(units, self.settings.micro_batch_tokens)]

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The objective's loss of a micro-batch, on the device and in the precision of the run."""
        with self.backend.autocast(self.dtype):
            return self.objective.loss(batch.to(self.device), totals)

    def evaluation_scheduled(self) -> bool:
        """True if this step is evaluated however the run is broken up: the first, the last, and each interval between."""
        interval = self.settings.eval_interval
        return self.step in (0, self.horizon) or bool(interval and self.step % interval == 0)

    def host_state(self) -> dict[str, Any]:
        """What an exact resume needs beside weights and optimizers: plain values, bytes and tensors. The callbacks' states
        are not in it."""
        return {
            "step": self.step,
            "evaluated": self.evaluated,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "horizon": self.horizon,
            "pending": [[_unit_to_dict(unit) for unit in mini_batch] for mini_batch in self.pending],
            "feed": self.feed.state_dict(),
            "meter": self.meter.state_dict(),
            "rng": self.backend.rng_state(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "algorithm": self.algorithm.state_dict(),
        }

    def load_host_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `host_state` returned, but for the generators: see `Backend.set_rng_state`."""
        self.step, self.evaluated, self.horizon = state["step"], state["evaluated"], state["horizon"]
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        self.pending = [[_unit_from_dict(unit) for unit in mini_batch] for mini_batch in state["pending"]]
        self.feed.load_state_dict(state["feed"])
        self.meter.load_state_dict(state["meter"], self.device)
        self.algorithm.load_state_dict(state["algorithm"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def _unit_to_dict(unit: Unit) -> dict[str, Any]:
    sequences = [{"ids": s.ids, "fields": dict(s.fields), "prompt": s.prompt} for s in unit.sequences]
    return {"sequences": sequences, "row": unit.row_index, "values": dict(unit.values)}


def _unit_from_dict(state: Mapping[str, Any]) -> Unit:
    sequences = tuple(Tokens(s["ids"], s["fields"], s.get("prompt", 0)) for s in state["sequences"])
    return Unit(sequences, state["row"], state["values"])
