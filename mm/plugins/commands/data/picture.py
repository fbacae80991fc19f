"""Draws the statistics of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm.plugins.evaluations.pictures import pyplot, save

if TYPE_CHECKING:
    from mm.plugins.commands.data.statistics import Statistics


def draw(found: Statistics, title: str, out: Path) -> Path:
    """Two panels: how many sequences have which length, with the limit; rows by language. Returns `out`."""
    import numpy as np
    from matplotlib import ticker

    figure, (lengths, languages) = pyplot().subplots(1, 2, figsize=(11, 4), width_ratios=[2, 1])
    bins = np.geomspace(max(1, min(found.lengths, default=1)), max(max(found.lengths, default=1), found.max_length) + 1, 51)
    lengths.hist(found.lengths, bins=bins)
    lengths.set_xscale("log")  # one long row would push all others into one bar of a linear axis
    lengths.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    lengths.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    lengths.xaxis.set_minor_formatter(ticker.NullFormatter())
    lengths.axvline(found.max_length, color="tab:red", label=f"max length {found.max_length}")
    lengths.set_xlabel("tokens")
    lengths.set_ylabel("sequences")
    lengths.legend()
    languages.bar(list(found.languages), list(found.languages.values()))
    languages.set_ylabel("rows")
    figure.suptitle(title)
    return save(figure, out)
