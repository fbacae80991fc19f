"""The command `mm plugins check`: the conformance checks of parts and callbacks, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mm.core.discovery import same_name
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.plugins.commands.plugins.listing import active, part_names, unknown_message
from mm.runtime.data.sources import open_rows
from mm.runtime.text.wording import count_text
from mm.testing import Check, check_callbacks, check_part
from mm.testing.suites.check import counts, fault, result_of, summary

_SHOWN = {"ok": "ok    ", "skipped": "skip  ", "failed": "FAILED"}


def run(manager: PluginManager, name: str, rows: str | None, data: str | None) -> Iterator[tuple[str, list[Check]]]:
    """(heading, checks) of each part, and of the callbacks of each plugin, that is called `name` or is in the package of that
    name. Raises UsageError if there is neither."""
    given = None if rows is None else _read(manager, rows)
    parts = active(manager, name)
    called = [p for p in manager.plugins if name in part_names(p, p.entry) or same_name(name, p.distribution)]
    watching = [plugin for plugin in called if "mm_callbacks" in plugin.hooks]
    if not parts and not watching:
        raise UsageError(unknown_message(manager, name))
    for plugin, spec in parts:
        checks = check_part(spec, plugins=manager, module=plugin.value, rows=given, locator=data)
        yield f"{spec.kind} {spec.name} of {plugin.name}", checks
    for plugin in watching:
        yield f"callbacks of {plugin.name}", check_callbacks(plugin.value, plugins=manager)


def _read(manager: PluginManager, path: str) -> list[Mapping[str, Any]]:
    source, _ = open_rows(manager, path)
    return [row for _, row in source.rows()]


def as_text(heading: str, checks: Sequence[Check]) -> str:
    """The heading, one line for each check, and the summary."""
    return "\n".join([heading, *(f"  {_SHOWN[check.state]} {_line(check)}" for check in checks), f"  {summary(checks)}"])


def _line(check: Check) -> str:
    return check.name + "".join(f"  ({part})" for part in (check.detail, check.place) if part)


def as_json(results: Mapping[str, Sequence[Check]]) -> list[dict[str, Any]]:
    """One object for each part: its heading, the counts, whether it passed, and its checks."""
    return [{"part": heading, **result_of(checks)} for heading, checks in results.items()]


def faults(results: Mapping[str, Sequence[Check]]) -> str:
    """The message for results that are no success; "" if they are one."""
    failed = sum(counts(checks)["failed"] for checks in results.values())
    if failed:
        return f"{count_text(failed, 'check')} failed."
    unchecked = [heading for heading, checks in results.items() if fault(checks)]
    return "\n".join(f"{heading}: {fault(results[heading])}" for heading in unchecked)
