"""The command `mm plugins check`: the conformance checks of parts and callbacks, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.plugins.commands.plugins.listing import active, conflict_of, unknown_message, watching
from mm.runtime.data.sources import open_rows
from mm.runtime.text.wording import count_text
from mm.testing import Check, check_callbacks, check_part
from mm.testing.suites.check import counts, fault, result_of, summary

_SHOWN = {"ok": "ok    ", "skipped": "skip  ", "failed": "FAILED"}


@attrs.frozen
class Result:
    """The checks of a part, or of a plugin's callbacks. `conflict` names other plugins that provide a part of its name."""

    heading: str
    checks: Sequence[Check]
    conflict: str = ""


def run(manager: PluginManager, name: str, rows: str | None, data: str | None) -> Iterator[Result]:
    """The results of each part, and of the callbacks of each plugin, that is called `name` or is in the package of that name.
    Raises UsageError if there is neither."""
    given = None if rows is None else _read(manager, rows)
    parts, watchers = active(manager, name), watching(manager, name)
    if not parts and not watchers:
        raise UsageError(unknown_message(manager, name))
    for plugin, spec in parts:
        checks = check_part(spec, plugins=manager, module=plugin.value, rows=given, locator=data)
        yield Result(f"{spec.kind} {spec.name} of {plugin.name}", checks, conflict_of(manager, plugin, spec))
    for plugin in watchers:
        yield Result(f"callbacks of {plugin.name}", check_callbacks(plugin.value, plugins=manager))


def _read(manager: PluginManager, path: str) -> list[Mapping[str, Any]]:
    source, _ = open_rows(manager, path)
    return [row for _, row in source.rows()]


def as_text(result: Result) -> str:
    """The heading, the conflict, one line for each check, and the summary."""
    conflict = [f"  conflict: {result.conflict}"] if result.conflict else []
    lines = [f"  {_SHOWN[check.state]} {_line(check)}" for check in result.checks]
    return "\n".join([result.heading, *conflict, *lines, f"  {summary(result.checks)}"])


def _line(check: Check) -> str:
    return check.name + "".join(f"  ({part})" for part in (check.detail, check.place) if part)


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One object for each part: its heading, its conflict, the counts, whether it passed, and its checks."""
    return [{"part": result.heading, "conflict": result.conflict, **result_of(result.checks)} for result in results]


def faults(results: Sequence[Result]) -> str:
    """The message for results that are no success; "" if they are one."""
    failed = sum(counts(result.checks)["failed"] for result in results)
    if failed:
        return f"{count_text(failed, 'check')} failed."
    return "\n".join(f"{result.heading}: {fault(result.checks)}" for result in results if fault(result.checks))
