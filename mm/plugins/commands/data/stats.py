"""The command `mm data stats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm.core.errors import DataError, UsageError
from mm.core.settings import TrainSettings
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.data_command import DataCommand, named_tokenizer, source_parts

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.plugins.commands.data.statistics import Statistics


@click.command(cls=DataCommand)
@click.argument("file")
@click.option("--tokenizer", "folder", metavar="FOLDER", help="Tokenizer folder, or one of a hub; by default the shipped one.")
@click.option("--max-length", type=click.IntRange(2, 10**9), default=512, show_default=True, help="Longest sequence in tokens.")
@click.option("--kind", default="", help="Kind of row, for a file that can be read as several.")
@as_json
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Plot lengths and languages into this file.")
@click.pass_obj
def stats(
    plugins: PluginManager, file: str, folder: str | None, max_length: int, kind: str, as_json: bool, png: Path | None
) -> None:
    """Count the rows of FILE: lengths, roles, languages, learned tokens, and the tokens that --max-length cuts off."""
    from mm.plugins.commands.data.statistics import Statistics
    from mm.runtime.data.corpus import data_tokenizer

    statistics = Statistics(data_tokenizer(named_tokenizer(plugins, folder), TrainSettings()), max_length)
    _collect(plugins, file, kind, statistics)
    if not statistics.rows:
        raise UsageError(f"{file} has no row that can be used; 'mm data check' lists the reasons.")
    values = statistics.as_dict()
    if as_json:
        print_json({"file": file, **values})
    else:
        _print_table(file, values)
    if png:
        from mm.plugins.commands.data.statistics_plot import plot_statistics

        click.echo(plot_statistics(statistics, file, png), err=as_json)


def _collect(plugins: PluginManager, file: str, kind: str, statistics: Statistics) -> None:
    from mm.plugins.commands.data.reading_bar import read_with_bar
    from mm.runtime.data.sources import kinds_of, open_rows

    source, reader = open_rows(plugins, file, kind or next(iter(kinds_of(plugins, file)), ""), source_parts())
    for note in source.notes():
        click.echo(note, err=True)
    for entry in read_with_bar(source, reader):
        if entry.row is None or entry.raw is None:
            statistics.bad += 1
            continue
        try:
            statistics.add(entry.row, reader.spec(entry.position, entry.raw).name)
        except DataError:
            statistics.bad += 1


def _print_table(file: str, values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, title=file, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column()
    for name, count, remark in _lines(values):
        table.add_row(name, count, remark)
    Console(highlight=False).print(table)


def _lines(values: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, count, remark) of each line of the table."""
    limit, rows = values["at_max_length"], values["rows"]
    formats = ", ".join(values["formats"])
    lines = [("rows", f"{rows:,}", f"format {formats}")]
    if values["bad_rows"]:
        lines.append(("bad rows", f"{values['bad_rows']:,}", "not counted below; 'mm data check' lists them"))
    lines += [("sequences", f"{values['sequences']:,}", ""), ("tokens", f"{values['tokens']:,}", "")]
    lines.append(("learned tokens", f"{values['learned_tokens']:,}", f"{values['learned_share']:.1%} of the tokens"))
    lines.append(("mean length", f"{values['mean_length']:,.1f}", "tokens per sequence"))
    lines += [(_quantile_name(share), f"{length:,}", "") for share, length in values["length_quantiles"].items()]
    for role, count in values["roles"].items():
        lines.append((f"role {role}", f"{count['turns']:,}", f"turns, {count['characters']:,} characters"))
    total = max(1, sum(values["languages"].values()))
    lines += [(f"language {name}", f"{n:,}", f"{n / total:.1%} of the rows") for name, n in values["languages"].items() if n]
    longer = limit["rows_longer"]
    lines.append((f"longer than {limit['max_length']}", f"{longer:,}", f"{longer / rows:.1%} of the rows"))
    lost, learned = limit["learned_tokens_lost"], values["learned_tokens"]
    lines.append(("  learned tokens lost", f"{lost:,}", f"{lost / max(1, learned):.1%} of the learned tokens"))
    return [*lines, ("  rows dropped", f"{limit['rows_dropped']:,}", "")]


def _quantile_name(share: str) -> str:
    names = {"0.0": "shortest", "0.5": "median", "1.0": "longest"}
    return names.get(share, f"{float(share):.0%} are at most")
