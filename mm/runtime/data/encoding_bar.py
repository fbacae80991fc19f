"""Progress of encoding: a bar on a terminal, else a line every half minute. Opening a cached store shows nothing."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from mm.core.say import Say, silent

# seconds between lines if standard error is not a terminal
_LINE_INTERVAL = 30.0


class EncodingBar:
    """Shows the rows encoded, the rate and, if the source knows how much of it was read, the time left."""

    def __init__(self, locator: str, say: Say) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal or say is silent)
        self._task = self._bar.add_task(f"opening {locator}", total=None)
        self._locator, self._say = locator, say
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> EncodingBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def wait(self) -> None:
        """Report that another process is encoding the same rows."""
        self._say(f"data: {self._locator}: waiting for another process that is encoding it")

    def show(self, rows: int, fraction: float | None) -> None:
        """Show progress: `rows` are encoded, and `fraction` of the source (0 to 1) was read, None if unknown."""
        now = time.monotonic()
        seconds = max(1e-9, now - self._started)
        text = f"{self._locator}: {rows:,} rows encoded, {rows / seconds:,.0f} rows/s"
        self._bar.update(self._task, description=text, completed=fraction or 0.0, total=None if fraction is None else 1.0)
        if self._bar.disable and now - self._last_line > _LINE_INTERVAL:
            self._last_line = now
            left = timedelta(seconds=round(seconds / fraction - seconds)) if fraction else None
            self._say(f"data: {text}" + (f", {fraction:.0%}, {left} left" if left is not None else ""))
