"""Plotting the statistics of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm.plugins.evaluations.pictures import pyplot, save

if TYPE_CHECKING:
    from mm.plugins.commands.data.statistics import Statistics


def plot_statistics(statistics: Statistics, title: str, out: Path) -> Path:
    """Plot a histogram of the sequence lengths, with the limit, and the rows per language. Returns `out`."""
    import numpy as np
    from matplotlib import ticker

    figure, (lengths, languages) = pyplot().subplots(1, 2, figsize=(11, 4), width_ratios=[2, 1])
    shortest, longest = min(statistics.lengths, default=1), max(statistics.lengths, default=1)
    bins = np.geomspace(max(1, shortest), max(longest, statistics.max_length) + 1, 51)
    lengths.hist(statistics.lengths, bins=bins)
    lengths.set_xscale("log")  # on a linear axis, one long row would push all others into one bar
    lengths.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    lengths.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    lengths.xaxis.set_minor_formatter(ticker.NullFormatter())
    lengths.axvline(statistics.max_length, color="tab:red", label=f"max length {statistics.max_length}")
    lengths.set_xlabel("tokens")
    lengths.set_ylabel("sequences")
    lengths.legend()
    languages.bar(list(statistics.languages), list(statistics.languages.values()))
    languages.set_ylabel("rows")
    figure.suptitle(title)
    return save(figure, out)
