"""The metrics that a reader looks at first, and one line of them that fits a width. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

# in this order; further metrics follow by name
MAIN = ("reward", "loss", "accuracy", "margin", "perplexity", "bits_per_byte", "length", "truncated", "kl", "entropy")
# a step's position in the run, and a sum that `perplexity` tells better
_LEFT_OUT = ("step", "learning_rate", "tokens", "seconds", "nll")
_GAP = "  "


def headline(metrics: Mapping[str, float], most: int = 3) -> dict[str, float]:
    """The `most` metrics that matter most; of an algorithm without any of `MAIN`, the first ones by name."""
    names = [name for name in MAIN if name in metrics] or _others(metrics)
    return {name: metrics[name] for name in names[:most]}


def texts(metrics: Mapping[str, float]) -> list[str]:
    """`loss 2.31` for each metric, the most important first."""
    names = [*(name for name in MAIN if name in metrics), *_others(metrics)]
    return [f"{name} {metrics[name]:.4g}" for name in names]


def fit(parts: Iterable[str], width: int | None = None) -> str:
    """The parts in one line, without those at the end that do not fit into `width` columns; the first is always there."""
    first, *rest = parts
    line = first
    for part in rest:
        if width is not None and len(line) + len(_GAP) + len(part) > width:
            break
        line += _GAP + part
    return line


def clock(seconds: float) -> str:
    """`0:03:12`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _others(metrics: Mapping[str, float]) -> Sequence[str]:
    return sorted(name for name in metrics if name not in (*MAIN, *_LEFT_OUT))
