"""Drawing metrics of runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mm.core.errors import UsageError, close_match
from mm.core.workspace import RunFolder
from mm.plugins.evaluations.pictures import pyplot, save
from mm.runtime.runs.reading import metric_lines

# what tells how a training went, best first: rewards of completions, pairs told apart, the loss
_TELLING = (("reward",), ("accuracy", "margin"), ("loss",))


def telling(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """The metrics that tell most about these runs, of those that all of them have."""
    logged = [{name for row in metric_lines(run) for name in row} for run in runs]
    return next((names for names in _TELLING if all(have.issuperset(names) for have in logged)), _TELLING[-1])


def read_metric(run: RunFolder, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric in metrics.jsonl. Raises UsageError with close matches when it is not there."""
    rows = metric_lines(run)
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    if not points:
        names = sorted({name for row in rows for name in row})
        raise UsageError(f"Run {run.name} has no metric {metric!r}.{close_match(metric, names)} It has: {', '.join(names)}.")
    steps, values = zip(*points, strict=True)
    return list(steps), list(values)


def plot_runs(runs: Sequence[RunFolder], metrics: Sequence[str], out: Path, *, apart: bool = False) -> Path:
    """Draw metrics over steps, with their held-out values where there are some. Returns `out`.

    One panel a metric holds all runs; `apart`, each run has a column of its own.
    """
    columns = [[run] for run in runs] if apart else [list(runs)]
    shape = (len(metrics), len(columns))
    figure, axes = pyplot().subplots(*shape, figsize=(5.5 * shape[1], 4 * shape[0]), squeeze=False)
    for row, metric in zip(axes, metrics, strict=True):
        for axis, shown in zip(row, columns, strict=True):
            _panel(axis, shown, metric)
    return save(figure, out)


def _panel(axis: Any, runs: Sequence[RunFolder], metric: str) -> None:
    for run in runs:
        (line,) = axis.plot(*read_metric(run, metric), label=run.name)
        with suppress(UsageError):  # a run without evaluations has only the training curve
            held = read_metric(run, f"held_out/{metric}")
            axis.plot(*held, "o--", color=line.get_color(), label=f"{run.name}, held out")
    axis.set_xlabel("step")
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
    axis.legend()
