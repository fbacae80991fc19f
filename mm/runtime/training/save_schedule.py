"""When a checkpoint is due by itself, and what a run would lose that ends now."""

from __future__ import annotations

import time

from mm.core.settings import TrainSettings

# a run is saved ten times at least, but within its first seconds nothing is worth a save
PARTS, LEAST_SECONDS = 10, 10.0
# of the time of a training that saves may take, as long as it is not saved for the minutes that have passed
LARGEST_SHARE = 0.05


def is_due(settings: TrainSettings, horizon: int, *, steps: int, seconds: float, cost: float = 0.0) -> bool:
    """True if a checkpoint is due `steps` and `seconds` after the last one, which took `cost` seconds.

    It is due after `--save-minutes`. Without `--save-interval` it is also due after a tenth of the run's steps, but not sooner
    than ten seconds or twenty times the cost.
    """
    if settings.save_minutes is None:
        return False
    tenth = settings.save_interval is None and steps * PARTS >= horizon
    return seconds >= 60 * settings.save_minutes or (tenth and seconds >= max(LEAST_SECONDS, cost / LARGEST_SHARE))


class SaveSchedule:
    """The step and the time of the last checkpoint of a run. `cost` is the time in seconds that writing it took."""

    def __init__(self, settings: TrainSettings, horizon: int, step: int) -> None:
        self._settings, self._horizon = settings, horizon
        self.step, self.complete, self._since = step, step, time.monotonic()
        self.cost = 0.0

    def start(self, step: int) -> None:
        """A checkpoint of this step is begun."""
        self.step, self._since = step, time.monotonic()

    def finish(self, cost: float) -> None:
        """The checkpoint that was begun last is complete."""
        self.complete, self.cost = self.step, cost

    def due(self, step: int) -> bool:
        """True if a checkpoint of this step is due by itself. None is while the last one is still being written."""
        seconds = time.monotonic() - self._since
        return self.complete == self.step and is_due(
            self._settings, self._horizon, steps=step - self.step, seconds=seconds, cost=self.cost
        )
