"""The command `mm data check`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm.core.settings import TrainSettings
from mm.plugins.commands.as_json import as_json
from mm.plugins.commands.data_command import DataCommand, named_tokenizer, source_parts

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.plugins.commands.data.checking import Checker, Finding
    from mm.plugins.commands.data.fixing import FixedFile, Output
    from mm.plugins.commands.data.report import Counts, JsonReport, TextReport
    from mm.runtime.data.reader import Entry, RowReader


@click.command(cls=DataCommand)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--tokenizer", "folder", metavar="FOLDER", help="Tokenizer folder, or one of a hub; by default the shipped one.")
@click.option("--max-length", type=click.IntRange(2, 10**9), default=512, show_default=True, help="Longest sequence in tokens.")
@click.option("--kind", default="", help="Kind of row, for a file that can be read as several.")
@click.option("--fix", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write the good rows to this .jsonl file.")
@click.option("--warnings", type=click.IntRange(0, 10**9), default=10, show_default=True,
              help="Rows listed for each kind of warning; 0 lists all.")  # fmt: skip
@as_json
@click.pass_obj
def check(
    plugins: PluginManager, files: tuple[str, ...], folder: str | None, max_length: int, kind: str, out: Path | None,
    warnings: int, as_json: bool,
) -> None:  # fmt: skip
    """List every bad row of FILE... with its line and the reason, and count the reasons. Exits with 1 if there is a bad row.

    Rows that are too long, that have nothing to learn, or that are repeated are warnings. --fix omits bad and repeated rows
    and those with nothing to learn; rows that are only too long are kept.
    """
    from mm.plugins.commands.data.checking import Checker, Finding
    from mm.plugins.commands.data.fixing import Output, fixed_file
    from mm.plugins.commands.data.reading_bar import read_with_bar
    from mm.plugins.commands.data.report import Counts, JsonReport, TextReport
    from mm.runtime.data.corpus import data_tokenizer
    from mm.runtime.data.source import Position
    from mm.runtime.data.sources import kinds_of, open_rows

    parts = source_parts()
    checker, counts = Checker(data_tokenizer(named_tokenizer(plugins, folder), TrainSettings()), max_length), Counts()
    report = JsonReport() if as_json else TextReport(warnings)
    with fixed_file(out, files) as fixed:
        output = Output(out)
        for name in files:
            source, reader = open_rows(plugins, name, kind or next(iter(kinds_of(plugins, name)), ""), parts)
            for note in source.notes():
                output.write(partial(click.echo, note, err=True))
            found = counts.rows + counts.file_errors.total()
            for entry in read_with_bar(source, reader):
                _check(entry, reader, checker, output, report, counts, fixed)
            if counts.rows + counts.file_errors.total() == found:
                empty = Finding(Position(path=name, line=0), "empty file", "it has no rows", whole_file=True)
                _report([empty], output, report, counts)
    output.write(partial(report.end, counts))
    if fixed:
        line = f"{out}: {fixed.rows:,} rows written, {counts.omitted:,} omitted"
        output.write(partial(click.echo, line, err=as_json or output.closed))
    if counts.errors or counts.file_errors:
        raise click.exceptions.Exit(1)


def _check(
    entry: Entry, reader: RowReader, checker: Checker, output: Output, report: TextReport | JsonReport, counts: Counts,
    fixed: FixedFile | None,
) -> None:  # fmt: skip
    findings = checker.findings(entry)
    path, whole_file = entry.position.path, any(finding.whole_file for finding in findings)
    counts.rows += not whole_file
    counts.files[path] += not whole_file
    _report(findings, output, report, counts)
    if entry.row is not None and entry.raw is not None:
        counts.formats[path] = reader.spec(entry.position, entry.raw).name
        counts.unread.add(path, reader.format(entry.position, entry.raw), entry.raw, entry.row)
    if not whole_file:
        _count(entry, findings, counts, fixed)


def _report(findings: list[Finding], output: Output, report: TextReport | JsonReport, counts: Counts) -> None:
    for finding in findings:
        output.write(partial(report.finding, finding))
        by_problem = counts.file_errors if finding.whole_file else counts.warnings if finding.warning else counts.errors
        by_problem[finding.problem] += 1


def _count(entry: Entry, findings: list[Finding], counts: Counts, fixed: FixedFile | None) -> None:
    counts.bad += any(not finding.warning for finding in findings)
    if any(finding.omit for finding in findings):
        counts.omitted += 1
    elif fixed and entry.raw is not None:
        fixed.write(entry.raw, counts.formats[entry.position.path], entry.position.path)
