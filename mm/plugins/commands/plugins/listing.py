"""The list of all parts: active ones, and those in conflict, blocked or broken, with the reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.discovery import is_path, same_name
from mm.core.errors import UsageError, close_match
from mm.core.plugins import Plugin, PluginManager
from mm.core.records import KINDS
from mm.core.say import command_line
from mm.core.spec import Spec
from mm.plugins.extras import DISTRIBUTION

CALLBACKS = "mm_callbacks"  # the hook of a plugin whose callbacks watch runs; they have no record
CALLBACKS_SUMMARY = f"Implements {CALLBACKS}."
LISTED_KINDS = (*KINDS, "callback")
_WIDE = 120  # columns of a terminal from which on the table has every column


@attrs.frozen(kw_only=True)
class Row:
    """One line of the list. `state` is active, conflict (two plugins provide a part of this name), blocked or broken; `reason`
    explains a state that is not active."""

    kind: str
    name: str
    summary: str = ""
    state: str = "active"
    distribution: str
    version: str
    plugin: str
    reason: str = ""


def rows(manager: PluginManager) -> list[Row]:
    """Every part of every plugin, sorted by kind and name, and one row for the callbacks of a plugin. A plugin without either
    has one row."""
    listed = [row for plugin in manager.plugins for row in _rows_of(plugin)]
    claims = Counter((row.kind, row.name) for row in listed if row.state == "active" and row.kind in KINDS)
    rivals = [row for row in listed if row.state == "active" and claims[row.kind, row.name] > 1]
    marked = [_in_conflict(manager, row, rivals) if row in rivals else row for row in listed]
    order = {kind: number for number, kind in enumerate(LISTED_KINDS)}
    return sorted(marked, key=lambda row: (order.get(row.kind, len(order)), row.name, row.plugin))


def rows_of(manager: PluginManager, distribution: str) -> list[Row]:
    """The rows of a package's plugins, by its name as pip knows it; empty if there is no such package."""
    return [row for row in rows(manager) if not is_path(row.plugin) and same_name(row.distribution, distribution)]


def find(manager: PluginManager, name: str) -> list[tuple[Plugin, Spec]]:
    """The active parts called `name`, `kind.name`, or by the name of their plugin or package. Raises UsageError if there is
    none."""
    parts = active(manager, name)
    if not parts:
        raise UsageError(unknown_message(manager, name))
    return parts


def active(manager: PluginManager, name: str) -> list[tuple[Plugin, Spec]]:
    """As `find`, but empty if there is none."""
    return [
        (plugin, spec) for plugin in manager.plugins for spec in plugin.records
        if name in names_of(plugin, spec) or same_name(name, plugin.distribution)
    ]  # fmt: skip


def unknown_message(manager: PluginManager, name: str) -> str:
    """The error message for a name that no active part has: why the part is unavailable, or else the closest names."""
    for plugin in manager.plugins:
        if plugin.state == "active" and not plugin.records and name in part_names(plugin, plugin.entry):
            return f"{name!r} provides no part: its hooks yield nothing."
        if plugin.state == "broken" and name in part_names(plugin, plugin.entry):
            return f"{name!r} is broken: '{command_line('plugins', name, plugins=manager.options)}' prints the traceback."
        for part, block in plugin.blocked.items():
            if name in part_names(plugin, part):
                return f"{name!r} is blocked by {block}."
    known = {
        n: row.summary for row in rows(manager) for n in (row.name, f"{row.kind}.{row.name}", row.plugin, row.distribution)
    }
    return f"No part or plugin is called {name!r}.{close_match(name, known)} 'mm plugins' lists all."


def names_of(plugin: Plugin, spec: Spec) -> set[str]:
    """The names by which a user may call an active part."""
    return part_names(plugin, f"{spec.kind}.{spec.name}")


def part_names(plugin: Plugin, part: str) -> set[str]:
    """The names by which a user may call the part `kind.name` of a plugin.

    A part from a file may also be called by the file: its name, its stem, its relative path with or without `./`.
    """
    names = {part, plugin.name, plugin.entry}
    if part != plugin.value:  # a module's name has dots too, but is not `kind.name`
        names.add(part.partition(".")[2] or part)
    if is_path(plugin.value):
        relative = os.path.relpath(plugin.value)
        names |= {Path(relative).name, Path(relative).stem, relative, os.path.join(".", relative)}
    return names


def watching(manager: PluginManager, name: str) -> list[Plugin]:
    """The active plugins with callbacks that are called `name`, `callback.name`, or by the name of their package."""
    return [p for p in manager.plugins if CALLBACKS in p.hooks and p.state == "active"
            and (name in callback_names(p) or same_name(name, p.distribution))]  # fmt: skip


def callback_names(plugin: Plugin) -> set[str]:
    """The names by which a user may call the callbacks of a plugin."""
    return part_names(plugin, plugin.entry) | {f"callback.{callback_name(plugin)}"}


def callback_name(plugin: Plugin) -> str:
    """The name of a plugin's callbacks in the list: that of its entry point without the kind, or that of its file."""
    return Path(plugin.value).stem if is_path(plugin.value) else _kind_and_name(plugin.entry)["name"]


def conflict_of(manager: PluginManager, plugin: Plugin, spec: Spec) -> str:
    """The other plugins that provide a part of this kind and name, and the option that leaves this one out; "" without any."""
    part = (spec.kind, spec.name, plugin.name, "conflict")
    return next((row.reason for row in rows(manager) if (row.kind, row.name, row.plugin, row.state) == part), "")


def as_json(listed: Sequence[Row]) -> list[dict[str, Any]]:
    """One object per row."""
    return [attrs.asdict(row) for row in listed]


def as_table(listed: Sequence[Row]) -> str:
    """The rows as a table, as wide as the terminal or $COLUMNS says, or unlimited if stdout is not a terminal.

    A table narrower than `_WIDE` has no columns for state, distribution and version: the summary tells those that are not
    active, or not of this project's distribution.
    """
    import io
    import shutil
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else 1000
    wide = width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("kind", "name", *(("state", "distribution", "version") if wide else ())):
        table.add_column(name, no_wrap=True)
    table.add_column("summary")
    for row in listed:
        text = row.summary if row.state == "active" else " - ".join(part for part in (row.summary, row.reason) if part)
        origin = (row.state, row.distribution, row.version) if wide else ()
        table.add_row(row.kind, row.name, *origin, text if wide else _narrow(row, text))
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")  # type: ignore[attr-defined]


def _narrow(row: Row, text: str) -> str:
    state = "" if row.state == "active" else f"{row.state}: "
    return f"{state}{text}" if row.distribution == DISTRIBUTION else f"{state}{text} ({row.distribution} {row.version})"


def _rows_of(plugin: Plugin) -> list[Row]:
    shared = {"distribution": plugin.distribution, "version": plugin.version, "plugin": plugin.name}
    listed = [Row(kind=s.kind, name=s.name, summary=s.summary, **shared) for s in plugin.records]
    for part, block in plugin.blocked.items():
        listed.append(Row(**_kind_and_name(part), state="blocked", reason=f"blocked by {block}", **shared))
    if plugin.state == "broken":
        listed.append(Row(**_kind_and_name(plugin.entry), state="broken", reason=plugin.reason, **shared))
    elif CALLBACKS in plugin.hooks:
        listed.append(Row(kind="callback", name=callback_name(plugin), summary=CALLBACKS_SUMMARY, **shared))
    return listed or [Row(kind="-", name=plugin.entry, summary=f"Implements {', '.join(plugin.hooks)}.", **shared)]


def _kind_and_name(entry: str) -> dict[str, str]:
    kind, _, name = entry.partition(".")
    return {"kind": kind, "name": name} if kind in LISTED_KINDS else {"kind": "-", "name": entry}


def _in_conflict(manager: PluginManager, row: Row, listed: Sequence[Row]) -> Row:
    same = [r for r in listed if (r.kind, r.name) == (row.kind, row.name) and r.plugin != row.plugin]
    others = ", ".join(r.distribution if r.distribution != row.distribution else r.plugin for r in same)
    plugin = next(plugin for plugin in manager.plugins if plugin.name == row.plugin)
    cure = manager.cure(plugin, f"{row.kind}.{row.name}")
    return attrs.evolve(row, state="conflict", reason=f"also in {others}" + (f"; {cure} leaves this one out" if cure else ""))
