"""Drawing metrics of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mm.core.errors import UsageError, close_match
from mm.core.workspace import RunFolder


def read_metric(run: RunFolder, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric in metrics.jsonl. Raises UsageError with close matches when it is not there."""
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    if not points:
        names = sorted({name for row in rows for name in row})
        raise UsageError(f"Run {run.name} has no metric {metric!r}.{close_match(metric, names)} It has: {', '.join(names)}.")
    steps, values = zip(*points, strict=True)
    return list(steps), list(values)


def plot_runs(runs: Sequence[RunFolder], metric: str, out: Path) -> Path:
    """Draw one panel a run: the metric over steps, and its held-out values where there are some. Returns `out`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(runs), figsize=(5.5 * len(runs), 4), squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        axis.plot(*read_metric(run, metric), label=f"training {metric}")
        with suppress(UsageError):  # a run without a held-out part has only the training curve
            axis.plot(*read_metric(run, f"held_out/{metric}"), "o--", label=f"held-out {metric}")
        axis.set_xlabel("step")
        axis.set_ylabel(metric)
        axis.set_title(run.name)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return out
