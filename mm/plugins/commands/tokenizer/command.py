"""The commands `mm tokenizer train`, `mm tokenizer show` and `mm tokenizer report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm.core.errors import UsageError
from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.data_command import DataCommand, source_parts
from mm.plugins.commands.groups import CommandGroup

if TYPE_CHECKING:
    from mm.contracts import Position
    from mm.core.plugins import PluginManager
    from mm.runtime.text.rows import Row


@click.group(cls=CommandGroup)
def tokenizer() -> None:
    """Train, show and compare tokenizers."""


@tokenizer.command(cls=DataCommand)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--vocab-size", type=click.IntRange(1, 10**8), default=6400, show_default=True, help="Number of tokens.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--split-digits/--merge-digits", default=True, show_default=True, help="Never merge a digit with others.")
@click.option("--split-han/--merge-han", default=True, show_default=True, help="Never merge a Han character with others.")
@click.option("--min-frequency", type=click.IntRange(1, 10**9), default=2, show_default=True, help="Least count of a pair.")
@click.option("--reserved-tokens", type=click.IntRange(0, 10**6), default=0, show_default=True,
              help="Special tokens without a meaning yet.")  # fmt: skip
@click.option("--template", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Chat template (Jinja) to use.")
@click.option("--force", is_flag=True, help="Replace a tokenizer that exists.")
@as_json
@click.pass_obj
def train(
    plugins: PluginManager, files: tuple[str, ...], vocab_size: int, out: Path, split_digits: bool, split_han: bool,
    min_frequency: int, reserved_tokens: int, template: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train a byte-level BPE tokenizer on the rows of FILE..., which are paths or built-in sources."""
    from mm.runtime.data.tokenizer_training import TrainingOptions, bytes_per_token, split_texts, texts_of, train_tokenizer
    from mm.runtime.models.storage import atomic_files

    if (out / "tokenizer.json").exists() and not force:
        raise UsageError(
            f"{out} already holds a tokenizer, and models trained with it need it. Choose another --out, or pass --force."
        )
    source = template.read_text(encoding="utf-8") if template else None
    options = TrainingOptions(
        vocab_size=vocab_size, split_digits=split_digits, split_han=split_han, min_frequency=min_frequency,
        reserved_tokens=reserved_tokens,
    )  # fmt: skip
    texts, held_out = split_texts(text for file in files for text in texts_of(_rows(plugins, file), source))
    trained = train_tokenizer(texts, options, source)
    with atomic_files(out) as folder:
        trained.save(folder)
    ratio = bytes_per_token(trained, held_out) if held_out else None
    if as_json:
        values = {"path": out, "vocab_size": trained.vocab_size, "fingerprint": trained.fingerprint}
        print_json({**values, "bytes_per_token": ratio, "held_out_texts": len(held_out)})
        return
    click.echo(f"{out}: {trained.vocab_size} tokens, fingerprint {trained.fingerprint}")
    if trained.vocab_size < vocab_size:
        click.echo(f"The texts have too few pairs for --vocab-size {vocab_size} at --min-frequency {min_frequency}.")
    if ratio:
        click.echo(f"{ratio:.2f} bytes per token on {len(held_out)} held-out texts of {len(held_out) + len(texts)}")


@tokenizer.command()
@click.argument("text", required=False)
@click.option("--tokenizer", "name", default="default", show_default=True, help="A folder, a run, a model or a hub's name.")
@as_json
@click.pass_obj
def show(plugins: PluginManager, text: str | None, name: str, as_json: bool) -> None:
    """Describe a tokenizer, and list the tokens of TEXT."""
    from mm.plugins.commands.tokenizer.report import open_tokenizer
    from mm.runtime.text.vocabulary import readable

    opened = open_tokenizer(name, Workspace.here(), plugins)
    names = {opened.bos_id: "begin", opened.eos_id: "end", opened.pad_id: "padding"}
    if as_json:
        ids = opened.encode(text or "")
        special = {role: index for index, role in names.items() if index is not None}
        values = {"tokenizer": name, "vocab_size": opened.vocab_size, "fingerprint": opened.fingerprint, "special": special}
        print_json({**values, "ids": ids, "tokens": [readable(opened.id_bytes[index]) for index in ids]})
        return
    click.echo(f"{name}: {opened.vocab_size} tokens, fingerprint {opened.fingerprint}")
    click.echo(f"chat template {opened.template_digest if opened.template else 'none'}")
    for index, name in sorted((i, name) for i, name in names.items() if i is not None):
        click.echo(f"{index:>6}  {opened.id_bytes[index].decode()}  ({name})")
    if text:
        ids = opened.encode(text)
        click.echo(f"{len(ids)} tokens for {len(text.encode())} bytes, {len(text.encode()) / len(ids):.2f} bytes per token")
        for index in ids:
            click.echo(f"{index:>6}  {readable(opened.id_bytes[index])}")


@tokenizer.command(cls=DataCommand)
@click.argument("tokenizers", nargs=-1, metavar="[TOKENIZER]...")
@click.option("--data", multiple=True, metavar="FILE", help="Also measure on these rows; may be given several times.")
@as_json
@click.pass_obj
def report(plugins: PluginManager, tokenizers: tuple[str, ...], data: tuple[str, ...], as_json: bool) -> None:
    """Compare TOKENIZERs on held-out Chinese, English, code and digits; "default" is the one that comes with mm.

    A TOKENIZER is a folder with a tokenizer.json, or a run or model whose tokenizer is taken. More bytes per token mean
    shorter sequences; the cost is a larger vocabulary.
    """
    from rich.console import Console

    from mm.plugins.commands.tokenizer.report import held_out_texts, open_tokenizer, report_of, table_of
    from mm.runtime.data.tokenizer_training import texts_of

    workspace = Workspace.here()
    opened = {name: open_tokenizer(name, workspace, plugins) for name in tokenizers or ("default",)}
    texts = held_out_texts() | {locator: list(texts_of(_rows(plugins, locator))) for locator in data}
    reports = [report_of(name, one, texts) for name, one in opened.items()]
    if as_json:
        print_json(reports)
    else:
        Console().print(table_of(reports))


def _rows(plugins: PluginManager, locator: str) -> Iterator[tuple[Position, Row]]:
    from mm.runtime.data.sources import kinds_of, read_rows
    from mm.runtime.text.rows import ChatRow, TextRow

    provided = kinds_of(plugins, locator)
    # a built-in source is read once for each kind of row that has text; a file has one kind, which "" leaves open
    for kind in [k for k in (TextRow.kind, ChatRow.kind) if k in provided] or [""]:
        yield from read_rows(plugins, locator, kind, source_parts())
