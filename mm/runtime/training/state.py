"""The state of a training, without the loop that advances it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor

from mm.core.callback import Callback
from mm.core.settings import TrainSettings
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack, split_by_tokens
from mm.runtime.nn.dropout import Dropout
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.context import stable_seed
from mm.runtime.training.distributed import World, shares_memory
from mm.runtime.training.feed import Feed
from mm.runtime.training.measures import Metrics, Totals
from mm.runtime.training.metrics import Meter
from mm.runtime.training.objective import Objective
from mm.runtime.training.roles import Role
from mm.runtime.training.sharding import is_sharded
from mm.runtime.training.shared_gradients import SharedGradients
from mm.runtime.training.signals import StopFlag
from mm.runtime.training.updates import Updates

# evaluations of a run without --eval-interval, besides that of the start: enough for a curve, at a few percent of its time
_EVALUATIONS = 5


class TrainState:
    """Everything that a training step reads and changes. The trainer runs the loop over it, checkpoints save it, callbacks read
    it as a `TrainingView`.

    `step` counts optimizer steps; `horizon` is the step at which the schedule ends; `evaluated` is the step of the last
    evaluation (-1: none). `tokens` and `seconds` are totals of the run. `pending` are mini-batches that
    `Algorithm.prepare` returned and no step has used yet.
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
        self.updates = Updates(roles, settings, self.scaler, self.device, backend)
        self.sharded = any(is_sharded(role.model) for role in roles.values())
        # where neither FSDP nor a data-parallel wrapper sums the gradients
        trained = [p for role in roles.values() if role.trainable for p in role.model.parameters() if p.requires_grad]
        self.gradients = SharedGradients(trained, world) if shares_memory(world, self.device) and not self.sharded else None
        self.meter = Meter()
        self.stop = StopFlag()
        self.horizon = settings.max_steps or feed.steps(settings.epochs)
        self.step, self.evaluated, self.tokens, self.seconds = 0, -1, 0, 0.0
        self.pending: list[list[Unit]] = []

    def micro_batches(self, units: list[Unit], step: int | None = None) -> list[Packed]:
        """The packs of a mini-batch, on the host: at most `--micro-batch-tokens` tokens each, or one longer unit. Those of a
        training step, `step`, have its dropout."""
        packs = [pack(group) for group in split_by_tokens(units, self.settings.micro_batch_tokens)]
        if step is None or not self.settings.dropout:
            return packs
        # each token of a shared prompt is dropped by its own document, so that prompts are not shared
        dropout = Dropout(self.settings.dropout, stable_seed(self.settings.seed, step))
        return [attrs.evolve(batch, dropout=dropout, shared=None) for batch in packs]

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The objective's loss and metrics of a micro-batch, computed on the run's device and in its precision."""
        with self.backend.autocast(self.dtype):
            return self.objective.loss(batch.to(self.device), totals)

    def log_scheduled(self) -> bool:
        """True if the metrics are logged at this step: at the last one and at multiples of `--log-interval`."""
        return self.step == self.horizon or self.step % self.settings.log_interval == 0

    def peek(self) -> dict[str, float]:
        """The metrics since they were last logged, of this rank alone. Reading them waits for the device."""
        return self.meter.peek()

    def evaluation_scheduled(self) -> bool:
        """True if a run that is never stopped evaluates at this step: at 0, the last, and after each interval."""
        interval = self.settings.eval_interval or math.ceil(self.horizon / _EVALUATIONS)
        return self.step == self.horizon or self.step % interval == 0

    def host_state(self) -> dict[str, Any]:
        """The state that an exact resume needs beside weights, optimizers and callbacks: plain values, bytes and tensors."""
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
        """Restore what `host_state` returned, except the random generators: `Backend.set_rng_state` restores these."""
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
