"""The command `mm data stats`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.plugins.commands.data.statistics import Statistics


@click.command()
@click.argument("file")
@click.option("--tokenizer", "folder", type=click.Path(path_type=Path), help="Tokenizer folder; by default the shipped one.")
@click.option("--max-length", type=click.IntRange(min=2), default=512, show_default=True, help="Longest sequence in tokens.")
@click.option("--kind", default="", help="Kind of row that is meant, where a file could be of several.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw lengths and languages into this file.")
@click.pass_obj
def stats(
    plugins: PluginManager, file: str, folder: Path | None, max_length: int, kind: str, as_json: bool, png: Path | None
) -> None:
    """Count what is in FILE: lengths, roles, languages, what is learned, and what --max-length cuts off."""
    from mm.plugins.commands.data.statistics import Statistics
    from mm.runtime.text.tokenizer import DEFAULT, Tokenizer

    found = Statistics(Tokenizer.load(folder or DEFAULT), max_length)
    _collect(plugins, file, kind, found)
    if not found.rows:
        raise UsageError(f"{file} has no row that can be used; mm data check says why.")
    figures = found.as_dict()
    if as_json:
        click.echo(json.dumps({"file": file, **figures}, ensure_ascii=False, indent=2))
    else:
        _print(file, figures)
    if png:
        from mm.plugins.commands.data.picture import draw

        click.echo(draw(found, file, png), err=as_json)


def _collect(plugins: PluginManager, file: str, kind: str, found: Statistics) -> None:
    from mm.plugins.commands.data.progress import read_with_bar
    from mm.runtime.data.sources import kinds_of, open_rows

    source, reader = open_rows(plugins, file, kind or next(iter(kinds_of(plugins, file)), ""))
    for note in source.notes():
        click.echo(note, err=True)
    for entry in read_with_bar(source, reader):
        if entry.row is None or entry.raw is None:
            found.bad += 1
            continue
        try:
            found.add(entry.row, reader.spec(entry.position, entry.raw).name)
        except DataError:
            found.bad += 1


def _print(file: str, figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, title=file, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column()
    for name, count, remark in _lines(figures):
        table.add_row(name, count, remark)
    Console(highlight=False).print(table)


def _lines(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, count, remark) of each line of the table."""
    limit, rows = figures["at_max_length"], figures["rows"]
    formats = ", ".join(figures["formats"])
    found = [("rows", f"{rows:,}", f"format {formats}")]
    if figures["bad_rows"]:
        found.append(("bad rows", f"{figures['bad_rows']:,}", "not counted below; mm data check names them"))
    found += [("sequences", f"{figures['sequences']:,}", ""), ("tokens", f"{figures['tokens']:,}", "")]
    found.append(("learned", f"{figures['learned_tokens']:,}", f"{figures['learned_share']:.1%} of the tokens"))
    found.append(("mean length", f"{figures['mean_length']:,.1f}", "tokens a sequence"))
    found += [(_quantile(name), f"{size:,}", "") for name, size in figures["length_quantiles"].items()]
    for role, count in figures["roles"].items():
        found.append((f"role {role}", f"{count['turns']:,}", f"turns, {count['characters']:,} characters"))
    spoken = max(1, sum(figures["languages"].values()))
    found += [(f"language {name}", f"{n:,}", f"{n / spoken:.1%} of the rows") for name, n in figures["languages"].items() if n]
    longer = limit["rows_longer"]
    found.append((f"longer than {limit['max_length']}", f"{longer:,}", f"{longer / rows:.1%} of the rows"))
    lost, learned = limit["learned_tokens_lost"], figures["learned_tokens"]
    found.append(("  learned tokens lost", f"{lost:,}", f"{lost / max(1, learned):.1%} of those learned"))
    return [*found, ("  rows dropped", f"{limit['rows_dropped']:,}", "")]


def _quantile(share: str) -> str:
    names = {"0.0": "shortest", "0.5": "median", "1.0": "longest"}
    return names.get(share, f"{float(share):.0%} are at most")
