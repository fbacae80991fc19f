"""The command `mm convert`."""

from __future__ import annotations

from pathlib import Path

import click

from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.line import Line
from mm.plugins.commands.parts import PartsCommand
from mm.runtime.devices.dtypes import DTYPES
from mm.runtime.models.load_settings import LoadSettings


class ConvertCommand(PartsCommand):
    """A command with the settings that may be changed when a trained model is loaded, such as YaRN's."""

    def compose(self, ctx: click.Context, line: Line) -> LoadSettings:
        """See `PartsCommand`; there is nothing below the line."""
        return LoadSettings(ctx.obj, [line], converts=True)


@click.command(cls=ConvertCommand)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", metavar="NAME", help="A converter (mm plugins --kind converter), or 'native' for our own layout.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Type of the weights; by default the model's, fp32.")
@click.option("--adapter", metavar="NAME:WHERE", help="First merge the adapter of a run or file, as in lora:my-run.")
@click.option("--tokenizer", metavar="FOLDER", help="The tokenizer of a MODEL without one, such as MiniMind's model/.")
@click.option("--quantise", metavar="TYPE", default="", help="Type of quantised weights, for formats that have them.")
@click.option("--max-shard-size", metavar="SIZE", default="", help="Largest file of weights, in Hugging Face layouts: 200MB.")
@click.option("--verify", metavar="ENGINE[:WHERE]", default="", help="Then try OUT in it: transformers, llama.cpp, vllm ...")
@click.option("--skills", is_flag=True, help="Ask the held-out skill items with the model and with its quantised weights.")
@click.option("--limit", type=click.IntRange(1, 10**9), metavar="N", help="Most items that --skills asks; by default all.")
@click.option("--force", is_flag=True, help="Replace OUT if it is a model.")
@as_json
@click.pass_context
def convert(
    ctx: click.Context, /, model: str, out: Path, to: str | None, dtype: str | None, adapter: str | None,
    tokenizer: str | None, quantise: str, max_shard_size: str, verify: str, skills: bool, limit: int | None, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL, a run's name or a folder or file of any readable format, to OUT.

    Without --to, a model in a foreign format becomes a folder in our own layout, an OUT that ends as a format's files do is
    written in that format, and a model of ours goes into the only format that can hold it. A format that can be read is read back
    and compared before it gets the name OUT.
    """
    from mm.plugins.evaluations.quantised import comparison
    from mm.plugins.verifiers import proof_of
    from mm.runtime.runs import api

    compare = comparison(ctx.obj, quantise, skills, limit, Workspace.here(), on_stderr)
    changes = ctx.meta["composition"].changes
    api.activate(ctx.obj, "cpu", on_stderr)
    from mm.runtime.models import convert as conversion

    written = conversion.convert(
        ctx.obj, model, out, to, dtype, changes=changes, adapter=adapter, tokenizer=tokenizer, quantise=quantise,
        max_shard_size=max_shard_size, force=force, say=on_stderr, compare=compare,
        proof=proof_of(ctx.obj, verify, on_stderr),
    )  # fmt: skip
    files = sorted(written.iterdir()) if written.is_dir() else [written]
    if as_json:
        print_json({"path": written, "files": {path.name: path.stat().st_size for path in files}})
        return
    click.echo(f"{written}: written")
    for path in files:
        click.echo(f"  {path.name}  {path.stat().st_size:,} bytes")
