"""The one loop. An algorithm says what is learned; everything else about a step is here or called from here."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.core.backend import Backend
from mm.core.contracts import Algorithm, Callback, Metrics
from mm.core.errors import MMError, StorageError
from mm.core.settings import TrainSettings
from mm.core.training.batch import Packed, Unit, pack, split_by_tokens
from mm.core.training.distributed import World, accumulate
from mm.core.training.feed import Feed
from mm.core.training.memory import explained, held
from mm.core.training.metrics import Meter
from mm.core.training.nonfinite import explain
from mm.core.training.objective import Objective
from mm.core.training.optim import learning_rate
from mm.core.training.profiling import phase
from mm.core.training.roles import Role
from mm.core.training.saver import Saver
from mm.core.training.signals import StopFlag
from mm.core.training.updates import Updates


@attrs.define(eq=False, kw_only=True)
class Progress:
    """Where a run stands. `pending` are mini-batches that `prepare` gave and no step has used yet; `evaluated` is the
    step of the last evaluation."""

    step: int = 0
    evaluated: int = -1
    tokens: int = 0
    seconds: float = 0.0
    pending: list[list[Unit]] = attrs.field(factory=list)


class Trainer:
    """Runs an algorithm over a feed until its horizon. Callbacks read `progress`, `horizon`, `settings`, `roles`."""

    def __init__(
        self,
        *,
        settings: TrainSettings,
        backend: Backend,
        world: World,
        roles: dict[str, Role],
        algorithm: Algorithm,
        feed: Feed,
        callbacks: list[Callback],
        saver: Saver | None = None,
        evaluate: Callable[[Trainer], dict[str, float]],
    ) -> None:
        self.settings, self.backend, self.world = settings, backend, world
        self.roles, self.algorithm, self.feed = roles, algorithm, feed
        self.objective = Objective(algorithm, roles)
        self.device = backend.device(world.local_rank)
        self.dtype = backend.default_dtype() if settings.dtype == "auto" else settings.dtype
        self.horizon = settings.max_steps or feed.steps(settings.epochs)
        self.notes = backend.notes
        self.scaler = backend.scaler(self.dtype)
        self.updates = Updates(roles, settings, self.scaler, self.device, self.notes)
        self.progress = Progress()
        self.meter = Meter()
        self.stop = StopFlag()
        self.saver, self._evaluate = saver, evaluate
        self._callbacks = _bind(callbacks)
        self.callbacks = callbacks
        self._recent: dict[int, list[Unit]] = {}

    # ---- the loop

    def fit(self) -> None:
        """Train to the horizon, or to a stopping rule. Saves at the end, and before answering a signal."""
        error: BaseException | None = None
        try:
            with self.stop.watch(), explained(self.backend, lambda: held(self)):
                self.emit("on_start")
                if self.evaluation_scheduled():  # at the start, or one that a signal cut off
                    self.evaluate()
                self._loop()
                self.check()
                if not self.stop.signalled:  # who sends a signal may not wait for long
                    self.evaluate()
                self.save()
                self._saved(wait=True)
        except BaseException as raised:
            error = raised
            self._settle(raised)
            raise
        finally:
            self.emit("on_end", error)

    def _settle(self, error: BaseException) -> None:
        """Let a save that an error found under way come to its end; a second interrupt waits for nothing."""
        if not isinstance(error, KeyboardInterrupt):
            try:
                self._saved(wait=True)
            except StorageError as second:
                error.add_note(str(second))

    def _loop(self) -> None:
        started = time.monotonic() - self.progress.seconds
        while not self._last:
            units = self._next_units()
            self.train_step(units)
            self.progress.seconds = time.monotonic() - started
            self._agree()
            self._after_step()

    def _next_units(self) -> list[Unit]:
        if not self.progress.pending:
            with phase("data"), torch.no_grad(), self.backend.autocast(self.dtype):
                self.progress.pending = self.algorithm.prepare(self.feed.next())
        return self.progress.pending.pop(0)

    def _agree(self) -> None:
        """Whether all ranks stop after this step; a save that failed on one of them ends the run on all."""
        limit, steps = self.settings.max_time, self.settings.stop_after_steps
        if limit and self.progress.seconds >= limit:
            self.stop.ask(f"--max-time {limit:g}")
        if steps and self.progress.step >= steps:
            self.stop.ask(f"--stop-after-steps {steps}")
        failed = self.stop.agree(self.world, failed=bool(self.saver and self.saver.failed))
        self._saved(wait=failed)

    def _after_step(self) -> None:
        step, settings = self.progress.step, self.settings
        if self.algorithm.after_step(step):
            self.progress.pending.clear()
        self.emit("on_step")
        if step % settings.log_interval == 0 or step == self.horizon:
            self.check()
            self.emit("on_log", self.log_values())
        if self._last:  # fit evaluates and saves at the end by itself
            return
        if self.evaluation_scheduled():
            self.evaluate()
        if settings.save_interval and step % settings.save_interval == 0 and not self._last:
            self.save()

    def evaluation_scheduled(self) -> bool:
        """Whether this step is measured however the run is broken up: the first, the horizon, each interval between."""
        step, interval = self.progress.step, self.settings.eval_interval
        return step in (0, self.horizon) or bool(interval and step % interval == 0)

    @property
    def _last(self) -> bool:
        """Whether the run ends with the step that it stands at."""
        return self.stop.agreed or self.progress.step >= min(self.horizon, self.settings.stop_after_steps or self.horizon)

    # ---- one optimizer step

    def train_step(self, units: list[Unit]) -> None:
        """One optimizer step on this rank's share of a mini-batch, cut into micro-batches by the token budget."""
        with phase("data"):
            micro = self.micro_batches(units)
            totals = self.objective.totals(micro, self.world)
        # ranks run equally many forwards, or a collective would wait for ever: the short ones add empty packs
        micro += [pack([])] * (int(totals["mm.micro"]) - len(micro))
        for index, batch in enumerate(micro):
            self._backward(batch, totals, last=index == len(micro) - 1)
        self._recent[self.progress.step] = units
        with phase("optimizer"):
            self.meter.add(self.updates.apply(self.progress.step, self.horizon))
        self.progress.step += 1
        self.progress.tokens += int(totals["mm.tokens"])

    def micro_batches(self, units: list[Unit]) -> list[Packed]:
        """The packs of a mini-batch, on the host."""
        return [pack(group) for group in split_by_tokens(units, self.settings.micro_batch_tokens)]

    def _backward(self, batch: Packed, totals: dict[str, float], last: bool) -> None:
        with ExitStack() as contexts:
            for role in self.roles.values():
                contexts.enter_context(accumulate(role.module, last))
            with phase("forward"):
                loss, metrics = self.loss(batch, totals)
            # data-parallel wrappers average over ranks; the loss is already divided by the global totals. Nothing times a
            # loss that is no number is none either: its gradients are then not finite, on any rank, though they might be
            loss = loss * (self.world.size + 0 * loss.detach())
            with phase("backward"):
                (self.scaler.scale(loss) if self.scaler else loss).backward()  # type: ignore[no-untyped-call]
        self.meter.add(metrics)

    def loss(self, batch: Packed, totals: dict[str, float]) -> tuple[Tensor, Metrics]:
        """The objective's, on the device and in the precision of the run."""
        with self.backend.autocast(self.dtype):
            return self.objective.loss(batch.to(self.device), totals)

    # ---- at intervals

    def check(self) -> None:
        """The one synchronisation of a log interval. Raises MMError naming step, rows and layer of a non-finite loss."""
        step = self.updates.failed_step(self.progress.step)
        if step is not None:
            raise MMError(explain(self, step, self._recent.get(step, [])))
        self._recent.clear()

    def log_values(self) -> dict[str, float]:
        """Metrics of the interval with the step, the rate and the speed."""
        values = self.meter.read(self.world)
        rate = learning_rate(self.progress.step - 1, self.horizon, self.settings)
        return {"step": self.progress.step, "learning_rate": rate, "tokens": self.progress.tokens, **values}

    def evaluate(self) -> None:
        """Measure on the held-out part and tell the callbacks, once a step. What asked to stop meanwhile is then agreed."""
        if self.progress.evaluated == self.progress.step:
            return
        self.progress.evaluated = self.progress.step
        with phase("evaluation"):
            values = self._evaluate(self)
            if values:
                self.emit("on_evaluate", values)
        if self.progress.step:  # before the first step there is nothing to save
            self.stop.agree(self.world)

    def save(self) -> None:
        """Begin a checkpoint of this step, when the one before it stands. Never one of a step that was not learned."""
        if self.saver:
            self.check()
            with phase("checkpoint"):
                self._saved(wait=True)
                self.saver.start(self)
                self._saved(wait=not self.settings.background_save)

    def _saved(self, *, wait: bool = False) -> None:
        """Tell the callbacks of a checkpoint that has come to stand. With `wait`, StorageError for one that could not."""
        if self.saver and (path := self.saver.finished(wait=wait)):
            self.emit("on_save", path)

    def emit(self, event: str, *arguments: Any) -> None:
        """Call one event of every callback that implements it."""
        for handler in self._callbacks.get(event, ()):
            handler(self, *arguments)


def _bind(callbacks: list[Callback]) -> dict[str, list[Callable[..., None]]]:
    """event -> the bound methods of those callbacks that override it."""
    return {
        event: [getattr(c, event) for c in callbacks if getattr(type(c), event) is not getattr(Callback, event)]
        for event in Callback.events
    }
