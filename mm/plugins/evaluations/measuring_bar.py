"""The progress of a long measurement, with the rate and the time left: a bar on a terminal, elsewhere a line every 10 s."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_INTERVAL = 10.0  # seconds between two lines, where there is no terminal


class MeasuringBar:
    """A context manager that counts things, called `unit` in its output, up to `total`, and shows the progress on stderr."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._started = self._printed = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> MeasuringBar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn(self.label), BarColumn(None), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the bar was created."""
        return time.monotonic() - self._started

    def add(self, count: int = 1) -> None:
        """Count `count` more, and update the bar or print a line."""
        self.done += count
        rate = self.done / max(1e-9, self.seconds)
        text = f"{self.done:,} of {self.total:,} {self.unit}, {rate:,.0f} {self.unit}/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.done, description=text)
        elif time.monotonic() - self._printed > _INTERVAL:
            self._printed = time.monotonic()
            print(f"{self.label}: {text}, {(self.total - self.done) / rate:.0f} s left", file=sys.stderr, flush=True)
