"""The progress of a training: a live line on a terminal, and one line of metrics per log interval, which log.txt has in full."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mm.core.callback import Callback
from mm.core.say import Say, silent
from mm.runtime.models.storage import name_errors
from mm.runtime.text.wording import count_text
from mm.runtime.training.headline import clock, fit, headline, texts

if TYPE_CHECKING:
    from mm.core.callback import TrainingView

# seconds without a line after which one is made between two log intervals. Steps may take minutes, and the device is waited for
# so rarely that it costs nothing
_PATIENCE = 15.0
# the first step also compiles and warms up: from this many on, the pace is that of the steps after it
_WARM = 5
_UNKNOWN = "-:--:-- left"


class ProgressBar(Callback):
    """Shows the step, the time left, reward or loss, tokens/s, memory, and the share of the device's peak for matrix products,
    as far as they fit the terminal. log.txt has all of them and every other metric.

    `flops` are the training FLOPs per token; `held_out` is the number of units that an evaluation measures.
    """

    name = "progress-bar"

    def __init__(self, log: Path, flops: float, held_out: int, say: Say) -> None:
        self.log, self.flops, self.held_out, self.say = log, flops, held_out, say
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self._first_step = self._last_line = 0
        self._started = self._warm = self._line_time = self._step_time = 0.0
        self._since = (0.0, 0)
        self._latest: list[str] = []

    def on_start(self, run: TrainingView) -> None:
        """Show the bar if stderr is a terminal."""
        now = time.monotonic()
        self._first_step = self._last_line = run.step
        self._started = self._line_time = self._step_time = now
        self._since = (now, run.tokens)
        if self.console.is_terminal and self.say is not silent:
            columns = (
                TextColumn("{task.fields[head]}"), BarColumn(max(6, min(40, self.console.width // 6))),
                TextColumn("{task.fields[rest]}", markup=False),
            )  # fmt: skip
            self.bar = Progress(*columns, console=self.console, transient=True)  # the last line stays above it
            self.bar.add_task("", total=run.horizon, completed=run.step, head=_step(run), rest=_UNKNOWN)
            self.bar.start()

    def on_step(self, run: TrainingView) -> None:
        """Advance the bar. The first step gives a line with the time left; where lines would be far apart, there are some with
        the metrics so far."""
        now, first = time.monotonic(), run.step == self._first_step + 1
        self._warm, self._step_time = now if first else self._warm, now
        if not run.log_scheduled() and now - self._line_time > _PATIENCE:
            self._show(run, run.peek())
        elif first and not run.log_scheduled():
            self._show(run, {})
        elif self.bar:
            self._advance(run)

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Show the metrics and the speed of the interval."""
        self._show(run, metrics)
        self._since = (self._step_time, run.tokens)

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """One line per evaluation, with the metrics that matter most; log.txt has all of them."""
        head = f"held out ({count_text(self.held_out, 'unit')}), step {run.step}:"
        self._write(fit([head, *texts(headline(metrics))], self.console.width), fit([head, *texts(metrics)]))
        now = time.monotonic()  # an evaluation's time is not that of the steps around it
        self._since, self._step_time = (self._since[0] + now - self._step_time, self._since[1]), now

    def on_save(self, run: TrainingView, path: Path) -> None:
        """One line per checkpoint, in the log only."""
        self._write("", f"saved {path.name}")

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """A last line, if the run ends between two log intervals; stop the bar."""
        if error is None and run.step > self._last_line:
            self._show(run, run.peek())
        if self.bar:
            self.bar.stop()

    def _show(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """A line with these metrics, and with the speed of the steps since the last log interval, if there were some."""
        rate = (run.tokens - self._since[1]) / max(1e-9, self._step_time - self._since[0])
        measured, main = texts(metrics), texts(headline(metrics))
        speed, share = ([f"{rate:,.0f} tokens/s"], self._share(run, rate)) if rate else ([], [])
        machine = [*speed, f"{run.backend.memory()['peak'] / 2**30:.1f} GiB", *share]
        self._latest = [*main, *machine, *(text for text in measured if text not in main)]
        self._last_line, self._line_time = run.step, time.monotonic()
        parts = [_step(run), self._left(run), *self._latest]
        self._write(fit(parts, self.console.width), fit(parts))
        if self.bar:
            self._advance(run)

    def _advance(self, run: TrainingView) -> None:
        assert self.bar
        head, column = _step(run), self.bar.columns[1]
        bar = column.bar_width if isinstance(column, BarColumn) else 0
        room = self.console.width - len(head) - (bar or 0) - 2  # a blank after each column
        rest = fit([self._left(run), *self._latest], room)
        self.bar.update(self.bar.task_ids[0], completed=run.step, head=head, rest=rest)

    def _left(self, run: TrainingView) -> str:
        """The time to the horizon at the pace since this process began to train."""
        done, since = run.step - self._first_step, self._started
        if not done:
            return _UNKNOWN
        if done > _WARM:
            done, since = done - 1, self._warm
        return f"{clock((time.monotonic() - since) / done * (run.horizon - run.step))} left"

    def _share(self, run: TrainingView, rate: float) -> Sequence[str]:
        peak = run.backend.peak_flops(run.dtype)
        return [f"{self.flops * rate / peak / run.world.size:.0%} of the peak FLOP/s"] if peak else []

    def _write(self, shown: str, logged: str) -> None:
        if shown and self.bar:
            self.bar.console.print(shown, highlight=False, markup=False, soft_wrap=True)
        elif shown:
            self.say(shown)
        if self.log.parent.is_dir():
            with name_errors(self.log, self.log), self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {logged}\n")


def _step(run: TrainingView) -> str:
    return f"step {run.step}/{run.horizon}"
