"""Early stopping: ends a training that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.core.callback import Callback
from mm.runtime.training.callbacks.best import ComparedMetric, is_comparable

if TYPE_CHECKING:
    from mm.core.callback import TrainingView


class EarlyStopping(Callback):
    """Ends the training after `patience` evaluations in a row that do not improve the best value by more than `min_delta`.

    On every rank: an evaluation gives all ranks the same values.
    """

    name = "early-stopping"

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best, self.step, self.waited = math.inf, 0, 0

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Count evaluations without an improvement, and ask to stop after `patience` of them."""
        if not is_comparable(run):
            return
        metric = ComparedMetric.of(metrics, "--patience")
        if metric.cost < self.best - self.min_delta:
            self.best, self.step, self.waited = metric.cost, run.step, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            best = ComparedMetric(metric.name, self.best)
            why = f"nothing better than {best} (step {self.step}) in {self.waited} evaluations"
            run.stop.ask(f"early stopping: {why}", done=True)

    def state_dict(self) -> dict[str, Any]:
        """The best cost, its step, and the number of evaluations since."""
        return {"best": self.best, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]
