"""The training loop. An algorithm says what is learned; everything else about a step happens here or is called from here."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from mm.core.callback import Callback
from mm.core.errors import MMError, StorageError
from mm.runtime.nn.batch import Packed, Unit, pack
from mm.runtime.nn.optimizers import learning_rate
from mm.runtime.training.beacon import BEACON
from mm.runtime.training.distributed import accumulate, explain_lost_rank
from mm.runtime.training.measures import Totals
from mm.runtime.training.memory import explain_out_of_memory, memory_report
from mm.runtime.training.nonfinite import explain
from mm.runtime.training.phases import phase
from mm.runtime.training.replicas import check_replicas
from mm.runtime.training.save_schedule import SaveSchedule
from mm.runtime.training.saver import Saver
from mm.runtime.training.state import TrainState


class Trainer:
    """Runs the loop over a `TrainState` until its horizon. `evaluate` measures the held-out rows."""

    def __init__(
        self, state: TrainState, *, evaluate: Callable[[TrainState], dict[str, float]], saver: Saver | None = None
    ) -> None:
        self.state, self.saver, self._evaluate = state, saver, evaluate
        self._schedule: SaveSchedule  # from the step at which `fit` begins
        self._save_due = False
        self._handlers = _bind(state.callbacks)
        self._recent: dict[int, list[Unit]] = {}

    # ---- the loop

    def fit(self) -> None:
        """Train to the horizon, or until something stops the run. Saves at the end, and before a signal ends it."""
        state, error = self.state, None
        self._schedule = SaveSchedule(state.settings, state.horizon, state.step)
        try:
            with (
                state.stop.watch(),
                explain_out_of_memory(state.backend, lambda: memory_report(state)),
                explain_lost_rank(state.world),
            ):
                self.emit("on_start")
                if state.evaluation_scheduled():  # at the start, or one that a signal cut off
                    self.evaluate()
                self._loop()
                self.check()
                if not state.stop.signalled:  # a process that gets a signal may be killed soon
                    self.evaluate()
                self.save()
                self._finish_save(wait=True)
        except BaseException as raised:
            error = raised
            self._settle(raised)
            raise
        finally:
            self.emit("on_end", error)

    def _settle(self, error: BaseException) -> None:
        """Wait for a save that was under way when `error` was raised; a second interrupt waits for nothing."""
        if not isinstance(error, KeyboardInterrupt):
            try:
                self._finish_save(wait=True)
            except StorageError as second:
                error.add_note(str(second))

    def _loop(self) -> None:
        started = time.monotonic() - self.state.seconds
        while not self._last:
            self.train_step(self.next_units())
            self.state.seconds = time.monotonic() - started
            self._agree()
            self._after_step()

    def next_units(self) -> list[Unit]:
        """This rank's share of the next mini-batch."""
        state = self.state
        if not state.pending:
            with phase("data"), torch.no_grad(), state.backend.autocast(state.dtype):
                state.pending = state.algorithm.prepare(state.feed.next())
        return state.pending.pop(0)

    def _agree(self) -> None:
        """Decide with all ranks whether to stop after this step. A save that failed on one rank ends the run on all."""
        state, limit, steps = self.state, self.state.settings.max_time, self.state.settings.stop_after_steps
        if limit and state.seconds >= limit:
            state.stop.ask(f"--max-time {limit:g}")
        if steps and state.step >= steps:
            state.stop.ask(f"--stop-after-steps {steps}")
        # the clock of one rank decides for all of them
        due = bool(self.saver) and state.world.main and self._schedule.due(state.step)
        agreed = state.stop.agree(state.world, failed=bool(self.saver and self.saver.failed), save=due)
        self._save_due = agreed["save"]
        self._finish_save(wait=agreed["failed"])

    def _after_step(self) -> None:
        state, settings = self.state, self.state.settings
        if state.algorithm.after_step(state.step):
            state.pending.clear()
        self.emit("on_step")
        if state.log_scheduled():
            self.check()
            self.emit("on_log", self.log_values())
        if self._last:  # fit evaluates and saves at the end by itself
            return
        if state.evaluation_scheduled():
            self.evaluate()
        at_interval = settings.save_interval and state.step % settings.save_interval == 0
        if (at_interval or self._save_due) and not self._last:
            self.save()

    @property
    def _last(self) -> bool:
        """True if the run ends with the present step."""
        state = self.state
        return state.stop.agreed or state.step >= min(state.horizon, state.settings.stop_after_steps or state.horizon)

    # ---- one optimizer step

    def train_step(self, units: list[Unit]) -> None:
        """Take one optimizer step on this rank's share of a mini-batch, cut into micro-batches by the token budget."""
        state = self.state
        BEACON.step(state.step + 1)
        with phase("data"):
            batches = state.micro_batches(units, state.step)
            totals = state.objective.totals(batches, state.world)
        # ranks run equally many forwards, or a collective would wait for ever: ranks with fewer micro-batches add empty packs
        batches += [pack([])] * (totals.micro_batches - len(batches))
        for index, batch in enumerate(batches):
            self._backward(batch, totals, last=index == len(batches) - 1)
        self._recent[state.step] = units
        if state.gradients:
            with phase("gradients"):
                state.gradients.sum()
        with phase("optimizer"):
            state.meter.add(state.updates.apply(state.step, state.horizon))
        state.step += 1
        state.tokens += int(totals.tokens)

    def _backward(self, batch: Packed, totals: Totals, last: bool) -> None:
        state = self.state
        with ExitStack() as contexts:
            for role in state.roles.values():
                contexts.enter_context(accumulate(role.module, last))
            with phase("forward"):
                loss, metrics = state.loss(batch, totals)
            if not loss.requires_grad:
                raise MMError(f"The loss of {type(state.algorithm).__name__} has no gradient: it is detached from the models.")
            # Data-parallel wrappers average over ranks, and the loss is already divided by the global totals. 0 * NaN is NaN:
            # adding it to the factor makes the gradients non-finite on every rank whenever the loss is.
            loss = loss * ((1 if state.gradients else state.world.size) + 0 * loss.detach())
            with phase("backward"):
                (state.scaler.scale(loss) if state.scaler else loss).backward()  # type: ignore[no-untyped-call]
        state.meter.add(metrics)

    # ---- at intervals

    def check(self) -> None:
        """Wait for the device. Raises MMError naming step, rows and layer if a gradient was not finite since the last call, and
        naming the ranks if they no longer have the same weights."""
        step = self.state.updates.failed_step(self.state.step)
        if step is not None:
            raise MMError(explain(self.state, step, self._recent.get(step, [])))
        check_replicas(self.state.roles.values(), self.state.world, self.state.step)
        self._recent.clear()

    def log_values(self) -> dict[str, float]:
        """The metrics of the interval, with the step, the learning rate and the tokens so far."""
        state = self.state
        rate = learning_rate(state.step - 1, state.horizon, state.settings)
        return {"step": state.step, "learning_rate": rate, "tokens": state.tokens, **state.meter.read(state.world)}

    def evaluate(self) -> None:
        """Measure the held-out rows and call the callbacks, at most once per step. Then the ranks agree on requests to stop that
        came during the evaluation."""
        state = self.state
        if state.evaluated == state.step:
            return
        state.evaluated = state.step
        with phase("evaluation"):
            values = self._evaluate(state)
            if values:
                self.emit("on_evaluate", values)
        if state.step:  # before the first step there is nothing to save
            state.stop.agree(state.world)

    def save(self) -> None:
        """Begin a checkpoint of this step once the one before it is complete. Raises MMError instead if the step's gradients
        were not finite."""
        if self.saver:
            self.check()
            with phase("checkpoint"):
                self._finish_save(wait=True)
                self._schedule.start(self.state.step)
                self.saver.start(self.state)
                self._finish_save(wait=not self.state.settings.background_save)

    def _finish_save(self, *, wait: bool = False) -> None:
        """Tell the callbacks of a completed checkpoint. `wait`: wait for one under way; raises StorageError if it failed."""
        if self.saver and (path := self.saver.pop_completed(wait=wait)):
            self._schedule.finish(self.saver.seconds)
            self.emit("on_save", path)

    def describe_stop(self, number: int) -> str:
        """The line for the user who has just sent a signal: what happens now, and what another Ctrl-C would lose."""
        state, schedule = self.state, self._schedule
        first = "saving, then stopping" if self._last else "stopping after this step, then saving"
        seconds = (0.0 if self._last else state.seconds / max(1, state.step)) + schedule.cost
        about = f" (about {seconds:.0f} s)" if seconds >= 1 else ""
        lost = state.step - schedule.complete
        losing = f" and loses {lost} {'step' if lost == 1 else 'steps'}" if lost else ""
        again = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C"
        return f"{signal.Signals(number).name}: {first}{about}; {again} stops at once{losing}"

    def emit(self, event: str, *arguments: Any) -> None:
        """Call one event of every callback that implements it."""
        for handler in self._handlers.get(event, ()):
            handler(self.state, *arguments)


def _bind(callbacks: list[Callback]) -> dict[str, list[Callable[..., None]]]:
    """event -> the bound methods of the callbacks that override it."""
    return {
        event: [getattr(c, event) for c in callbacks if getattr(type(c), event) is not getattr(Callback, event)]
        for event in Callback.events
    }
