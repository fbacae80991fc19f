"""Draws the statistics of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm.plugins.commands.pictures import pyplot, save

if TYPE_CHECKING:
    from mm.plugins.commands.data.statistics import Statistics


def draw(found: Statistics, title: str, out: Path) -> Path:
    """Two panels: how many sequences have which length, with the limit; rows by language. Returns `out`."""
    figure, (lengths, languages) = pyplot().subplots(1, 2, figsize=(11, 4), width_ratios=[2, 1])
    lengths.hist(found.lengths, bins=50)
    lengths.axvline(found.max_length, color="tab:red", label=f"max length {found.max_length}")
    lengths.set_xlabel("tokens")
    lengths.set_ylabel("sequences")
    lengths.legend()
    languages.bar(list(found.languages), list(found.languages.values()))
    languages.set_ylabel("rows")
    figure.suptitle(title)
    return save(figure, out)
