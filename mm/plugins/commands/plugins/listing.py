"""The list of parts: active ones, those claimed twice, blocked and broken ones with the reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.discovery import is_path
from mm.core.errors import UsageError, close_match
from mm.core.plugins import Plugin, PluginManager
from mm.core.records import KINDS
from mm.core.spec import Spec


@attrs.frozen(kw_only=True)
class Row:
    """One line. `state` is active, conflict (claimed twice), blocked or broken; `reason` says why it is not active."""

    kind: str
    name: str
    summary: str = ""
    state: str = "active"
    distribution: str
    version: str
    plugin: str
    reason: str = ""


def rows(manager: PluginManager) -> list[Row]:
    """Every part of every plugin, by kind and name; a plugin without parts has a line of its own."""
    found = [row for plugin in manager.plugins for row in _rows_of(plugin)]
    claims = Counter((row.kind, row.name) for row in found if row.state == "active" and row.kind in KINDS)
    marked = [_in_conflict(row, found) if claims[row.kind, row.name] > 1 and row.state == "active" else row for row in found]
    order = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(marked, key=lambda row: (order.get(row.kind, len(order)), row.name, row.plugin))


def find(manager: PluginManager, name: str) -> list[tuple[Plugin, Spec]]:
    """The parts that a name means: `name`, `kind.name` or a whole plugin. Raises UsageError when there is none."""
    found = [(plugin, spec) for plugin in manager.plugins for spec in plugin.records if name in names_of(plugin, spec)]
    if not found:
        raise UsageError(unknown(manager, name))
    return found


def unknown(manager: PluginManager, name: str) -> str:
    """The message for a name that means nothing active, with what is near it and why it may be missing."""
    for plugin in manager.plugins:
        if plugin.state == "active" and not plugin.records and name in part_names(plugin, plugin.entry):
            return f"{name!r} brings no part: there is nothing to check."
        if plugin.state == "broken" and name in part_names(plugin, plugin.entry):
            return f"{name!r} is broken: mm plugins {name} shows the traceback."
        for part, block in plugin.blocked.items():
            if name in part_names(plugin, part):
                return f"{name!r} is blocked by {block}."
    known = {n for row in rows(manager) for n in (row.name, f"{row.kind}.{row.name}", row.plugin)}
    return f"No part or plugin is called {name!r}.{close_match(name, known)} mm plugins lists all."


def names_of(plugin: Plugin, spec: Spec) -> set[str]:
    """What an active part answers to."""
    return part_names(plugin, f"{spec.kind}.{spec.name}")


def part_names(plugin: Plugin, part: str) -> set[str]:
    """What a part `kind.name` of a plugin answers to; one of a file also to the file, as it may be written."""
    names = {part, plugin.name, plugin.entry}
    if part != plugin.value:  # which has dots of its own
        names.add(part.partition(".")[2] or part)
    if is_path(plugin.value):
        near = os.path.relpath(plugin.value)
        names |= {Path(near).name, Path(near).stem, near, os.path.join(".", near)}
    return names


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """One object a row."""
    return [attrs.asdict(row) for row in found]


def as_table(found: Sequence[Row]) -> str:
    """A table as wide as the terminal, or as wide as it needs where the output is no terminal."""
    import io
    import shutil
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "name", "summary", "state", "distribution", "version", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in found:
        text = row.summary if row.state == "active" else " - ".join(part for part in (row.summary, row.reason) if part)
        table.add_row(row.kind, row.name, text, row.state, row.distribution, row.version)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")  # type: ignore[attr-defined]


def _rows_of(plugin: Plugin) -> list[Row]:
    shared = {"distribution": plugin.distribution, "version": plugin.version, "plugin": plugin.name}
    found = [Row(kind=s.kind, name=s.name, summary=s.summary, **shared) for s in plugin.records]
    for part, block in plugin.blocked.items():
        found.append(Row(**_entry(part), state="blocked", reason=f"blocked by {block}", **shared))
    if plugin.state == "broken":
        reason = plugin.reason
        found.append(Row(**_entry(plugin.entry), state="broken", reason=reason, **shared))
    return found or [Row(kind="-", name=plugin.entry, summary=f"Implements {', '.join(plugin.hooks)}.", **shared)]


def _entry(entry: str) -> dict[str, str]:
    kind, _, name = entry.partition(".")
    return {"kind": kind, "name": name} if kind in KINDS else {"kind": "-", "name": entry}


def _in_conflict(row: Row, found: Sequence[Row]) -> Row:
    same = [r for r in found if (r.kind, r.name) == (row.kind, row.name) and r.plugin != row.plugin]
    others = ", ".join(r.distribution if r.distribution != row.distribution else r.plugin for r in same)
    return attrs.evolve(row, state="conflict", reason=f"also in {others}; block one with -p no:DISTRIBUTION")
