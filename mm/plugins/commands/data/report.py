"""How a check is told: lines and a table for people, one JSON document for programs. Both are written as rows come."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import attrs
import click

from mm.plugins.commands.data.checking import Finding

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST = 300  # characters of a reason: it may quote the row


@attrs.define
class Counts:
    """Of all rows. `formats` has for each file its format, `errors` and `warnings` count by problem."""

    rows: int = 0
    bad: int = 0
    left_out: int = 0
    files: Counter[str] = attrs.field(factory=Counter)
    formats: dict[str, str] = attrs.field(factory=dict)
    errors: Counter[str] = attrs.field(factory=Counter)
    warnings: Counter[str] = attrs.field(factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; shares are of all rows."""
        files = [{"path": path, "format": self.formats.get(path), "rows": rows} for path, rows in self.files.items()]
        counted = {
            name: {problem: {"rows": n, "share": self.share(n)} for problem, n in counts.most_common()}
            for name, counts in (("errors", self.errors), ("warnings", self.warnings))
        }
        return {"rows": self.rows, "good": self.rows - self.bad, "bad": self.bad, **counted, "files": files}

    def share(self, count: int) -> float:
        """Of all rows."""
        return round(count / self.rows, 6) if self.rows else 0.0


class TextReport:
    """Every error is a line; of each kind of warning the first few, or all."""

    def __init__(self, shown: int) -> None:
        self._shown, self._seen = shown, Counter[str]()

    def finding(self, finding: Finding) -> None:
        """One line, or none."""
        self._seen[finding.problem] += finding.warning
        if finding.warning and self._shown and self._seen[finding.problem] > self._shown:
            return
        kind = "warning: " if finding.warning else ""
        where = f"{finding.position.path}:{finding.position.line}"
        click.echo(f"{where}: {kind}{_line(finding.reason)}  [{finding.problem}]")

    def end(self, counts: Counts) -> None:
        """The counts."""
        for path, rows in counts.files.items():
            click.echo(f"{path}: {rows:,} rows" + (f", format {counts.formats[path]}" if path in counts.formats else ""))
        good = counts.rows - counts.bad
        click.echo(f"{counts.rows:,} rows: {good:,} good ({counts.share(good):.2%}), {counts.bad:,} with errors")
        for title, found in (("error", counts.errors), ("warning", counts.warnings)):
            for problem, count in found.most_common():
                click.echo(f"  {title:<8} {problem:<16} {count:>10,}  {counts.share(count):>8.2%}")
        hidden = sum(max(0, n - self._shown) for n in counts.warnings.values()) if self._shown else 0
        if hidden:
            click.echo(f"{hidden:,} warnings are not listed; --warnings 0 lists all.")


class JsonReport:
    """One object: `findings`, then the counts."""

    def __init__(self) -> None:
        self._between = '{"findings": ['

    def finding(self, finding: Finding) -> None:
        """The next element."""
        found = {
            "path": finding.position.path, "line": finding.position.line, "problem": finding.problem,
            "severity": "warning" if finding.warning else "error", "reason": finding.reason[:_LONGEST],
        }  # fmt: skip
        click.echo(f"{self._between}\n  {json.dumps(found, ensure_ascii=False)}", nl=False)
        self._between = ","

    def end(self, counts: Counts) -> None:
        """The rest of the document."""
        begun = "\n]" if self._between == "," else self._between + "]"
        click.echo(f"{begun}, {json.dumps(counts.as_dict(), ensure_ascii=False)[1:]}")


def _line(text: str) -> str:
    """One line that a terminal shows as it is."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
