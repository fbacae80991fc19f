"""Says it when a metric leaves the range that its algorithm calls well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mm.core.callback import Callback
from mm.runtime.training.measures import Watch

if TYPE_CHECKING:
    from mm.core.callback import TrainingView


class Watchdog(Callback):
    """Looks at each log interval's metrics. `watched` are the healthy ranges by metric; `warn` says a text once a run."""

    name = "watchdog"

    def __init__(self, watched: Mapping[str, Watch], warn: Callable[[str], None]) -> None:
        self.watched, self.warn = watched, warn
        self._said: set[str] = set()

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """One warning for each metric, the first time that it is out of its range."""
        for name, watch in self.watched.items():
            value = metrics.get(name)
            if value is not None and not watch.low <= value <= watch.high and name not in self._said:
                self._said.add(name)
                self.warn(f"step {run.step}: {name} is {value:.3g}: {watch.meaning}")
