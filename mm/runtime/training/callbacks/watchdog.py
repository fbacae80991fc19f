"""Warns when a metric leaves the range that its algorithm declares healthy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mm.core.callback import Callback
from mm.runtime.training.measures import Watch

if TYPE_CHECKING:
    from mm.core.callback import TrainingView


class Watchdog(Callback):
    """Checks the metrics of each log interval. `watched` maps a metric to its healthy range; `warn` prints a text, once
    per run."""

    name = "watchdog"

    def __init__(self, watched: Mapping[str, Watch], warn: Callable[[str], None]) -> None:
        self.watched, self.warn = watched, warn
        self._warned: set[str] = set()

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Warn of each metric the first time that it is out of its range."""
        for name, watch in self.watched.items():
            if name not in self._warned and not watch.is_met(name, metrics):
                self._warned.add(name)
                self.warn(f"step {run.step}: {name} is {metrics[name]:.3g}: {watch.meaning}")
