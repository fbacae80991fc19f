"""The output of `mm data check`: text for people, or one JSON document for programs. Both are written while rows are read."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import attrs
import click

from mm.plugins.commands.data.checking import Finding
from mm.runtime.data.row_keys import UnreadKeys
from mm.runtime.text.wording import count_text

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST = 600  # most characters of a reason that are printed: it may quote the row


@attrs.define
class Counts:
    """Counts over all files: `rows` read, `bad` rows with an error, and rows that `--fix` has `omitted`. `files` has the number
    of rows and `formats` the format of each file; `errors` and `warnings` count rows per problem, `file_errors` files that are
    damaged or empty, `unread` the keys that nothing reads."""

    rows: int = 0
    bad: int = 0
    omitted: int = 0
    files: Counter[str] = attrs.field(factory=Counter)
    formats: dict[str, str] = attrs.field(factory=dict)
    errors: Counter[str] = attrs.field(factory=Counter)
    warnings: Counter[str] = attrs.field(factory=Counter)
    file_errors: Counter[str] = attrs.field(factory=Counter)
    unread: UnreadKeys = attrs.field(factory=UnreadKeys)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values; each `share` is of all rows."""
        files = [
            {"path": path, "format": self.formats.get(path), "rows": rows, "unread_keys": self.unread.of(path)}
            for path, rows in self.files.items()
        ]
        counted = {
            name: {problem: {"rows": n, "share": self.share(n)} for problem, n in counts.most_common()}
            for name, counts in (("errors", self.errors), ("warnings", self.warnings))
        }
        total = {"rows": self.rows, "good": self.rows - self.bad, "bad": self.bad}
        return {**total, **counted, "file_errors": dict(self.file_errors), "files": files}

    @property
    def file_text(self) -> str:
        """`, 1 damaged file`; "" if all files have rows and could be read to their ends."""
        return "".join(f", {count_text(number, problem)}" for problem, number in self.file_errors.most_common())

    def share(self, count: int) -> float:
        """`count` as a share of all rows, to six decimals."""
        return round(count / self.rows, 6) if self.rows else 0.0


class TextReport:
    """Prints a line for every error, and for the first `most_warnings` warnings of each kind (0: all)."""

    def __init__(self, most_warnings: int) -> None:
        self._most_warnings, self._warnings = most_warnings, Counter[str]()

    def finding(self, finding: Finding) -> None:
        """Print the finding, unless enough warnings of its kind were printed."""
        self._warnings[finding.problem] += finding.warning
        if finding.warning and self._most_warnings and self._warnings[finding.problem] > self._most_warnings:
            return
        kind = "warning: " if finding.warning else ""
        where = finding.position.path + ("" if finding.whole_file else f":{finding.position.line}")
        click.echo(f"{where}: {kind}{_line(finding.reason)}  [{finding.problem}]")

    def end(self, counts: Counts) -> None:
        """Print the counts."""
        for path, rows in counts.files.items():
            format = f", format {counts.formats[path]}" if path in counts.formats else ""
            click.echo(f"{path}: {count_text(rows, 'row')}{format}")
        for line in (*counts.unread.turn_lines(), *counts.unread.row_lines()):
            click.echo(_line(line))
        good = counts.rows - counts.bad
        share = f" ({counts.share(good):.2%})" if counts.rows else ""
        click.echo(f"{count_text(counts.rows, 'row')}: {good:,} good{share}, {counts.bad:,} with errors{counts.file_text}")
        for title, by_problem in (("error", counts.errors), ("warning", counts.warnings)):
            for problem, count in by_problem.most_common():
                click.echo(f"  {title:<8} {problem:<16} {count:>10,}  {counts.share(count):>8.2%}")
        most = self._most_warnings
        hidden = sum(max(0, n - most) for n in counts.warnings.values()) if most else 0
        if hidden:
            click.echo(f"{hidden:,} warnings are not listed; --warnings 0 lists all.")


class JsonReport:
    """Prints one JSON object: the array `findings`, then the counts."""

    def __init__(self) -> None:
        self._between = '{"findings": ['

    def finding(self, finding: Finding) -> None:
        """Print the finding as the next element of `findings`."""
        values = {
            "path": finding.position.path, "line": finding.position.line, "problem": finding.problem,
            "severity": "warning" if finding.warning else "error", "reason": finding.reason[:_LONGEST],
        }  # fmt: skip
        click.echo(f"{self._between}\n  {json.dumps(values, ensure_ascii=False)}", nl=False)
        self._between = ","

    def end(self, counts: Counts) -> None:
        """Close `findings`, print the counts and the end of the document."""
        end_of_findings = "\n]" if self._between == "," else self._between + "]"
        click.echo(f"{end_of_findings}, {json.dumps(counts.as_dict(), ensure_ascii=False)[1:]}")


def _line(text: str) -> str:
    """The text as one line of at most `_LONGEST` characters, with control characters escaped for the terminal."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
