"""Plotting the metrics of runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mm.core.errors import UsageError, close_match
from mm.core.workspace import RunFolder
from mm.plugins.evaluations.pictures import pyplot, save
from mm.runtime.runs.reading import metric_lines

_FEW = 30  # points
# the metrics to plot by default, the most informative first: reward, preference accuracy and margin, loss
_DEFAULTS = (("reward",), ("accuracy", "margin"), ("loss",))


def default_metrics(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """The most informative metrics that all of these runs have logged."""
    logged = [{name for row in metric_lines(run) for name in row} for run in runs]
    return next((names for names in _DEFAULTS if all(have.issuperset(names) for have in logged)), _DEFAULTS[-1])


def read_metric(run: RunFolder, metric: str) -> tuple[list[float], list[float]]:
    """The steps and the values of a metric in metrics.jsonl. Raises UsageError with close matches if it was not logged."""
    rows = metric_lines(run)
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    if not points:
        names = sorted({name for row in rows for name in row})
        raise UsageError(f"Run {run.name} has no metric {metric!r}.{close_match(metric, names)} Known: {', '.join(names)}.")
    steps, values = zip(*points, strict=True)
    return list(steps), list(values)


def plot_place(runs: Sequence[RunFolder], out: Path | None, force: bool) -> Path:
    """The file to write a plot of runs to: `out`, or by default plot.png in the first run's folder, which may be written again.
    Raises UsageError if `out` exists, without `force`."""
    if out is None:
        return runs[0].path / "plot.png"
    if out.exists() and not force:
        raise UsageError(f"{out} exists: name another file, or overwrite it with --force (in Python: force=True).")
    return out


def plot_runs(runs: Sequence[RunFolder], metrics: Sequence[str], out: Path, *, apart: bool = False) -> Path:
    """Plot metrics over steps, with their held-out values if there are any. Returns `out`.

    There is one panel per metric with all runs in it or, with `apart`, one panel per metric and run.
    """
    columns = [[run] for run in runs] if apart else [list(runs)]
    shape = (len(metrics), len(columns))
    figure, axes = pyplot().subplots(*shape, figsize=(5.5 * shape[1], 4 * shape[0]), squeeze=False)
    for row, metric in zip(axes, metrics, strict=True):
        for axis, column in zip(row, columns, strict=True):
            _plot_panel(axis, column, metric)
    return save(figure, out)


def _plot_panel(axis: Any, runs: Sequence[RunFolder], metric: str) -> None:
    for run in runs:
        steps, values = read_metric(run, metric)
        # a curve of few points is not to be seen without marks
        (line,) = axis.plot(steps, values, "." if len(steps) == 1 else ".-" if len(steps) < _FEW else "-", label=run.name)
        with suppress(UsageError):  # a run without evaluations has only the training curve
            steps, values = read_metric(run, f"held_out/{metric}")
            # between two evaluations nothing is known, and a line would claim a course
            axis.plot(steps, values, "o" if len(steps) < 3 else "o--", color=line.get_color(), label=f"{run.name}, held out")
    names = [run.name for run in runs]
    axis.set_title(f"{metric} of {', '.join(names) if len(names) < 3 else f'{len(names)} runs'}")
    axis.set_xlabel("step")
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
    axis.legend()
