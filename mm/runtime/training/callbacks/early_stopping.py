"""Ending a training that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.core.callback import Callback
from mm.runtime.training.callbacks.best import Figure, is_comparable

if TYPE_CHECKING:
    from mm.core.callback import TrainingView


class EarlyStopping(Callback):
    """Ends the training after `patience` evaluations in a row whose figure is not better than the best by more than
    `min_delta`.

    Stands on every rank; evaluations give all of them the same figures.
    """

    name = "early-stopping"

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best, self.step, self.waited = math.inf, 0, 0

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Count, and ask to stop where the patience is at its end."""
        if not is_comparable(run):
            return
        figure = Figure.of(metrics, "--patience")
        if figure.cost < self.best - self.min_delta:
            self.best, self.step, self.waited = figure.cost, run.step, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            why = f"nothing better than {Figure(figure.name, self.best)} (step {self.step}) in {self.waited} evaluations"
            run.stop.ask(f"early stopping: {why}", done=True)

    def state_dict(self) -> dict[str, Any]:
        """The best figure's cost, its step, and the evaluations since."""
        return {"best": self.best, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]
