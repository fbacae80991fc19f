"""The group `mm data`, and its commands `make` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm.core.errors import UsageError
from mm.core.records import SourceSpec
from mm.core.settings import TrainSettings
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.data.check import check
from mm.plugins.commands.data.listing import list_names
from mm.plugins.commands.data.stats import stats
from mm.plugins.commands.data_command import DataCommand, named_tokenizer, source_parts
from mm.plugins.commands.groups import CommandGroup
from mm.runtime.text.wording import count_text

if TYPE_CHECKING:
    from rich.table import Table

    from mm.core.plugins import PluginManager
    from mm.runtime.data.reader import RowReader
    from mm.runtime.data.source import Position, Source
    from mm.runtime.text.rows import Row, TokenSequence
    from mm.runtime.text.tokenizer import Tokenizer


@click.group(cls=CommandGroup)
def data() -> None:
    """Check and count rows; write built-in data; show rows token by token."""


data.add_command(check)
data.add_command(list_names)
data.add_command(stats)


@data.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write into; by default data/NAME.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of generated data.")
@as_json
@click.pass_obj
def make(plugins: PluginManager, name: str, out: Path | None, seed: int, as_json: bool) -> None:
    """Write the files of the built-in source NAME."""
    from mm.runtime.models.storage import atomic_files

    source = _generated_source(plugins, name)
    if source is None:
        names = [spec.name for spec in plugins.specs(SourceSpec) if _generated_source(plugins, spec.name) is not None]
        raise UsageError(f"Source {name!r} makes no files. Sources that do: {', '.join(names) or 'none'}.")
    folder = out or Path("data") / name
    with atomic_files(folder) as path:
        path.rmdir()  # a source creates the folder that it is given
        files = source.make(path, seed)  # type: ignore[attr-defined]
    if as_json:
        print_json({"path": folder, "rows": files})
        return
    click.echo(f"{folder}:")
    for file, rows in files.items():
        click.echo(f"  {file}  {count_text(rows, 'row')}")


@data.command(cls=DataCommand)
@click.argument("file")
@click.option("--row", "number", type=click.IntRange(1, 10**9), help="Number of the row, from 1; by default the first.")
@click.option("--line", type=click.IntRange(1, 10**9), help="Instead of --row: the line that mm data check names.")
@click.option("--tokenizer", "folder", metavar="FOLDER", help="Tokenizer folder, or one of a hub; by default the shipped one.")
@click.option("--max-length", type=click.IntRange(2, 10**9), default=512, show_default=True, help="Longest sequence in tokens.")
@click.option("--kind", default="", help="Kind of row, for a built-in source that has several.")
@as_json
@click.pass_obj
def show(
    plugins: PluginManager, file: str, number: int | None, line: int | None, folder: str | None, max_length: int, kind: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Show one row of FILE as the model sees it: its tokens, their ids, and which of them are learned (in the loss)."""
    from rich.console import Console

    from mm.runtime.data.corpus import data_tokenizer
    from mm.runtime.data.sources import kinds_of, open_rows

    kind = kind or next(iter(kinds_of(plugins, file)), "")
    position, row, number = _row(*open_rows(plugins, file, kind, source_parts()), file, number, line)
    tokenizer = data_tokenizer(named_tokenizer(plugins, folder), TrainSettings(allow_lost_fields=True))
    encoded = row.encode(tokenizer, max_length)
    if as_json:
        sequences = [[{"ids": ids, "learn": learn} for ids, learn in unit] for unit in encoded.units]
        place = f"{position.path}:{position.line}"
        print_json(
            {"place": place, "kind": row.kind, "cut": encoded.truncated, "lost": sorted(tokenizer.lost), "units": sequences}
        )
        return
    units = count_text(len(encoded.units), "unit")
    cut = f", cut at --max-length {max_length}" if encoded.truncated else ""
    click.echo(f"{position.path}:{position.line}  {row.kind} row {number:,}, {units}{cut}")
    for name in tokenizer.lost:
        click.echo(f"{name} by the chat template: a training refuses the row, unless it is given --allow-lost-fields")
    console = Console(highlight=False)
    for unit in encoded.units:
        for sequence in unit:
            console.print(_table(tokenizer, sequence))


def _row(source: Source, reader: RowReader, file: str, number: int | None, line: int | None) -> tuple[Position, Row, int]:
    """The row of that number, or that starts on that line, with its position and number. Raises DataError if it is bad, and
    UsageError if there is none."""
    if number and line:
        raise UsageError("--row and --line: give one of them.")
    for found, entry in enumerate(reader.read(source), 1):
        if entry.position.line == line if line else found == (number or 1):
            if entry.row is None:
                assert entry.error is not None
                raise entry.error
            return entry.position, entry.row, found
    raise UsageError(f"{file} has no row on line {line}." if line else f"{file} has fewer than {count_text(number or 1, 'row')}.")


def _generated_source(plugins: PluginManager, name: str) -> object | None:
    """The source of that name, if it can write its own files (has `make`); None otherwise."""
    spec = plugins.get(SourceSpec, name)
    source = plugins.load(SourceSpec, name)(spec.config() if spec.config else None, name, "")
    return source if hasattr(source, "make") else None


def _table(tokenizer: Tokenizer, sequence: TokenSequence) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mm.runtime.text.vocabulary import readable

    ids, learn = sequence
    table = Table(box=box.SIMPLE_HEAD, caption=f"{len(ids)} tokens, {sum(learn[1:])} learned", caption_justify="left")
    for name in ("position", "id"):
        table.add_column(name, justify="right")
    table.add_column("token")
    table.add_column("learned")
    for position, (token_id, learned) in enumerate(zip(ids, learn, strict=True)):
        style = "bold green" if learned else "dim"
        text = Text(readable(tokenizer.id_bytes[token_id]), style=style)
        # the first token is never a target, as nothing precedes it
        table.add_row(str(position), str(token_id), text, "yes" if learned and position else "", style=style)
    return table
