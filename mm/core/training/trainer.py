"""The one loop. An algorithm says what is learned; everything else about a step is here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.core.backend import Backend
from mm.core.contracts import Algorithm, Callback, Metrics
from mm.core.errors import MMError
from mm.core.settings import TrainSettings
from mm.core.training.batch import Packed, Unit, pack, split_by_tokens
from mm.core.training.distributed import World, accumulate
from mm.core.training.feed import Feed
from mm.core.training.metrics import Meter
from mm.core.training.nonfinite import explain
from mm.core.training.optim import build_optimizers, learning_rate
from mm.core.training.roles import Role
from mm.core.training.signals import StopFlag


@attrs.define(eq=False, kw_only=True)
class Progress:
    """Where a run stands. `pending` are mini-batches that `prepare` gave and no step has used yet."""

    step: int = 0
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
        save: Callable[[Trainer], object],
        evaluate: Callable[[Trainer], dict[str, float]],
    ) -> None:
        self.settings, self.backend, self.world = settings, backend, world
        self.roles, self.algorithm, self.feed = roles, algorithm, feed
        self.device = backend.device(world.local_rank)
        self.dtype = backend.default_dtype() if settings.dtype == "auto" else settings.dtype
        self.horizon = settings.max_steps or feed.steps(settings.epochs)
        self.notes = backend.notes
        self.optimizers = {
            role.name: build_optimizers(role.model, settings, self.notes) for role in roles.values() if role.trainable
        }
        self.scaler = backend.scaler(self.dtype)
        self.progress = Progress()
        self.meter = Meter()
        self.stop = StopFlag()
        self._save, self._evaluate = save, evaluate
        self._callbacks = _bind(callbacks)
        self.callbacks = callbacks
        self._bad = torch.zeros((), device=self.device)
        self._bad_step = torch.full((), -1.0, device=self.device)
        self._recent: dict[int, list[Unit]] = {}

    # ---- the loop

    def fit(self) -> None:
        """Train to the horizon, or to a stopping rule. Saves at the end, and before answering a signal."""
        error: BaseException | None = None
        try:
            with self.stop.watch():
                self.emit("on_start")
                if self.progress.step == 0:
                    self.evaluate()
                self._loop()
                self.check()
                if not self.stop.signalled:  # who sends a signal may not wait for long
                    self.evaluate()
                self.save()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.emit("on_end", error)

    def _loop(self) -> None:
        started = time.monotonic() - self.progress.seconds
        while self.progress.step < self.horizon and not self.stop.agreed:
            units = self._next_units()
            self.train_step(units)
            self.progress.seconds = time.monotonic() - started
            self._after_step()

    def _next_units(self) -> list[Unit]:
        if not self.progress.pending:
            with torch.no_grad():
                self.progress.pending = self.algorithm.prepare(self.feed.next())
        return self.progress.pending.pop(0)

    def _after_step(self) -> None:
        step, settings = self.progress.step, self.settings
        if self.algorithm.after_step(step):
            self.progress.pending.clear()
        self.emit("on_step")
        if step % settings.log_interval == 0 or step == self.horizon:
            self.check()
            self.emit("on_log", self.log_values())
        # fit evaluates and saves at the end by itself
        last = step == self.horizon or self.stop.agreed
        if settings.eval_interval and step % settings.eval_interval == 0 and not last:
            self.evaluate()
        if settings.save_interval and step % settings.save_interval == 0 and not last:
            self.save()

    # ---- one optimizer step

    def train_step(self, units: list[Unit]) -> None:
        """One optimizer step on this rank's share of a mini-batch, cut into micro-batches by the token budget."""
        micro = self.micro_batches(units)
        totals = self._totals(micro)
        # ranks run equally many forwards, or a collective would wait for ever: the short ones add empty packs
        micro += [pack([])] * (int(totals["mm.micro"]) - len(micro))
        for index, batch in enumerate(micro):
            self._backward(batch, totals, last=index == len(micro) - 1)
        self._recent[self.progress.step] = units
        self._update()
        self.progress.step += 1
        self.progress.tokens += int(totals["mm.tokens"])

    def micro_batches(self, units: list[Unit]) -> list[Packed]:
        """The packs of a mini-batch, on the host."""
        return [pack(group) for group in split_by_tokens(units, self.settings.micro_batch_tokens)]

    def _totals(self, micro: list[Packed]) -> dict[str, float]:
        counted: dict[str, float] = {"mm.tokens": float(sum(b.num_tokens for b in micro))}
        # an empty pack fixes the names, so that a rank without rows agrees with the others on what is summed
        parts: tuple[Algorithm | Role, ...] = (self.algorithm, *self.roles.values())
        for batch in micro or [pack([])]:
            for part in parts:
                for name, value in part.counts(batch).items():
                    counted[name] = counted.get(name, 0.0) + value
        seconds, limit = self.progress.seconds, self.settings.max_time
        steps = self.settings.stop_after_steps
        ending = self.stop.raised or (limit and seconds >= limit) or (steps and self.progress.step + 1 >= steps)
        counted |= {"mm.stop": float(bool(ending)), "mm.signal": float(bool(self.stop.raised))}
        totals = self.world.sum(counted)
        self.stop.agreed, self.stop.signalled = totals["mm.stop"] > 0, totals["mm.signal"] > 0
        totals["mm.micro"] = self.world.max(len(micro))
        return totals

    def _backward(self, batch: Packed, totals: dict[str, float], last: bool) -> None:
        module = next(r.module for r in self.roles.values() if r.trainable)
        with accumulate(module, last):
            loss, metrics = self.loss(batch.to(self.device), totals)
            # data-parallel wrappers average over ranks; the loss is already divided by the global totals
            loss = loss * self.world.size
            (self.scaler.scale(loss) if self.scaler else loss).backward()  # type: ignore[no-untyped-call]
        self.meter.add(metrics)

    def loss(self, batch: Packed, totals: dict[str, float]) -> tuple[Tensor, Metrics]:
        """The algorithm's loss and the models' auxiliary losses: the one place where they meet."""
        with self.backend.autocast(self.dtype):
            loss, metrics = self.algorithm.loss(batch, totals)
            for role in self.roles.values():
                prefix = f"{role.name}/" if len(self.optimizers) > 1 else ""
                metrics |= {prefix + name: pair for name, pair in role.auxiliary_metrics().items()}
                auxiliary = role.auxiliary_loss(totals)
                if auxiliary is not None:
                    loss = loss + auxiliary
        return loss, metrics

    def _update(self) -> None:
        rate = learning_rate(self.progress.step, self.horizon, self.settings)
        for name, optimizers in self.optimizers.items():
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                if self.scaler:
                    self.scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(
                [p for p in self.roles[name].model.parameters() if p.requires_grad],
                self.settings.clip_norm or float("inf"),
            )
            self.meter.add({f"{name}/grad_norm" if len(self.optimizers) > 1 else "grad_norm": (norm.detach(), 1.0)})
            if not self.scaler:  # a scaler skips overflowing steps by itself
                self._mask(norm)
            for optimizer in optimizers:
                self._step(optimizer)
                optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update()

    def _mask(self, norm: Tensor) -> None:
        """Remember the first non-finite step on the device; from then on no update is applied."""
        bad = (~torch.isfinite(norm)).float()
        self._bad_step = torch.where((self._bad == 0) & (bad > 0), float(self.progress.step), self._bad_step)
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

    # ---- at intervals

    def check(self) -> None:
        """The one synchronisation of a log interval. Raises MMError naming step, rows and layer of a non-finite loss."""
        # a scaler halves its scale at each overflow: this small, no scale would have helped
        lost = self.scaler is not None and self.scaler.get_scale() < 2**-14
        if self._bad.item() or lost:
            step = self.progress.step - 1 if lost else int(self._bad_step.item())
            raise MMError(explain(self, step, self._recent.get(step, [])))
        self._recent.clear()

    def log_values(self) -> dict[str, float]:
        """Metrics of the interval with the step, the rate and the speed."""
        values = self.meter.read(self.world)
        rate = learning_rate(self.progress.step - 1, self.horizon, self.settings)
        return {"step": self.progress.step, "learning_rate": rate, "tokens": self.progress.tokens, **values}

    def evaluate(self) -> None:
        """Measure on the held-out part and tell the callbacks."""
        values = self._evaluate(self)
        if values:
            self.emit("on_evaluate", values)

    def save(self) -> None:
        """Write a checkpoint and tell the callbacks."""
        path = self._save(self)
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
