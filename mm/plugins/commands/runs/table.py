"""The table of `mm runs`: as many columns as fit, the most useful ones first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from mm.core.workspace import RunFolder
from mm.runtime.runs.reading import metric_lines
from mm.runtime.training.headline import MAIN, headline, texts

# columns in the order in which they are left out where they do not fit
_OPTIONAL = ("parameters", "algorithm", "created")
_RIGHT = ("step", "parameters")
_LEAST_NAME = 16


def table_of(runs: Sequence[RunFolder], entries: Sequence[Mapping[str, Any]], width: int) -> str:
    """The table of runs and their `reading.overview`s, at most `width` columns wide unless that is too narrow for all that must
    be in it; longer names are cut."""
    columns = _columns(runs, entries)
    for name in _OPTIONAL:
        if _width(columns) > width:
            del columns[name]
    longest = _longest(columns["run"])
    widths = {name: _longest(cells) for name, cells in columns.items()}
    widths["run"] = max(min(_LEAST_NAME, longest), min(longest, longest + width - _width(columns)))
    return "\n".join(
        "  ".join(_cell(cells[row], widths[name], right=name in _RIGHT) for name, cells in columns.items()).rstrip()
        for row in range(len(runs) + 1)
    )


def result_of(run: RunFolder) -> str:
    """The last reward or loss of a run, the held-out one if it was measured: `held-out loss 2.31`."""
    last: dict[str, float] = {}
    for line in metric_lines(run):
        last |= line
    held_out = {name.removeprefix("held_out/"): value for name, value in last.items() if name.startswith("held_out/")}
    for metrics, prefix in ((held_out, "held-out "), (last, "")):
        if found := texts(headline({name: metrics[name] for name in MAIN if name in metrics}, most=1)):
            return prefix + found[0]
    return ""


def _columns(runs: Sequence[RunFolder], entries: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The header and the cells of each column."""
    created = [time.strftime("%m-%d %H:%M", time.localtime(m["created"])) if "created" in m else "" for m in entries]
    return {
        "run": ["run", *(run.name for run in runs)],
        "algorithm": ["algorithm", *(m.get("algorithm", "") for m in entries)],
        "state": ["state", *(m["state"] for m in entries)],
        "step": ["step", *(f"{m.get('step', 0)}/{m.get('steps', '?')}" for m in entries)],
        "result": ["result", *(result_of(run) for run in runs)],
        "parameters": ["parameters", *(f"{m.get('parameters', 0):,}" for m in entries)],
        "created": ["created", *created],
    }


def _longest(cells: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, cells))


def _width(columns: dict[str, list[str]]) -> int:
    return sum(_longest(cells) + 2 for cells in columns.values()) - 2


def _cell(text: str, width: int, *, right: bool) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank
