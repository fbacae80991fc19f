"""The live progress bar, or plain lines without a terminal; both are also written to log.txt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mm.core.callback import Callback
from mm.core.say import Say, silent
from mm.runtime.models.storage import name_errors

if TYPE_CHECKING:
    from mm.core.callback import TrainingView

# shown first, in this order; an algorithm's other metrics follow by name
_ORDER = ("loss", "perplexity", "bits_per_byte")
_HIDDEN = ("step", "learning_rate", "tokens", "nll")


class ProgressBar(Callback):
    """Shows metrics, tokens/s, the share of the device's peak for matrix products, memory and time left.

    `flops` are the training FLOPs per token.
    """

    name = "progress-bar"

    def __init__(self, log: Path, flops: float, say: Say) -> None:
        self.log, self.flops, self.say = log, flops, say
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self._since = (0.0, 0)

    def on_start(self, run: TrainingView) -> None:
        """Show the bar if stderr is a terminal."""
        self._since = (time.monotonic(), run.tokens)
        if self.console.is_terminal and self.say is not silent:
            columns = (
                TextColumn("step"), MofNCompleteColumn(), BarColumn(None), TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
            self.bar.add_task("", total=run.horizon, completed=run.step)

    def on_step(self, run: TrainingView) -> None:
        """Advance the bar. Reads no tensor."""
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=run.step)

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Show the metrics and the speed of the interval."""
        now, tokens = time.monotonic(), run.tokens
        rate = (tokens - self._since[1]) / max(1e-9, now - self._since[0])
        self._since = (now, tokens)
        left = run.seconds / run.step * (run.horizon - run.step)
        text = f"{_format(metrics)} {rate:,.0f} tokens/s{self._share(run, rate)} {_memory(run)}"
        if self.bar:
            self.bar.update(self.bar.task_ids[0], description=text)
            self._write(f"step {run.step}/{run.horizon} {text}", show=False)
        else:
            self._write(f"step {run.step}/{run.horizon} {text} {_clock(left)} left")

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """One line per evaluation."""
        self._write(f"held out, step {run.step}: {_format(metrics)}")
        self._since = (time.monotonic(), run.tokens)

    def on_save(self, run: TrainingView, path: Path) -> None:
        """One line per checkpoint, in the log only."""
        self._write(f"saved {path.name}", show=False)

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """Stop the bar."""
        if self.bar:
            self.bar.stop()

    def _share(self, run: TrainingView, rate: float) -> str:
        peak = run.backend.peak_flops(run.dtype)
        return f" {self.flops * rate / peak / run.world.size:.0%} of peak" if peak else ""

    def _write(self, line: str, *, show: bool = True) -> None:
        if show and self.bar:
            self.bar.console.print(line, highlight=False)
        elif show:
            self.say(line)
        if self.log.parent.is_dir():
            with name_errors(self.log, self.log), self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def _format(metrics: Mapping[str, float]) -> str:
    names = [n for n in _ORDER if n in metrics] + sorted(n for n in metrics if n not in (*_ORDER, *_HIDDEN))
    return " ".join(f"{name} {metrics[name]:.4g}" for name in names)


def _memory(run: TrainingView) -> str:
    return f"{run.backend.memory()['peak'] / 2**30:.1f} GiB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
