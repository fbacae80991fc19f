"""The command `mm convert`."""

from __future__ import annotations

from pathlib import Path

import click

from mm.core.say import on_stderr
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.line import Line
from mm.plugins.commands.parts import PartsCommand
from mm.runtime.devices.dtypes import DTYPES
from mm.runtime.models.load_settings import LoadSettings


class ConvertCommand(PartsCommand):
    """A command with the settings that may be changed when a trained model is loaded, such as YaRN's."""

    def compose(self, ctx: click.Context, line: Line) -> LoadSettings:
        """See `PartsCommand`; there is nothing below the line."""
        return LoadSettings(ctx.obj, [line])


@click.command(cls=ConvertCommand)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", metavar="NAME", help="A converter (mm plugins --kind converter), or 'native' for our own layout.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Type of the weights; by default the model's, fp32.")
@click.option("--adapter", metavar="NAME:WHERE", help="First merge the adapter of a run or file, as in lora:my-run.")
@click.option("--force", is_flag=True, help="Replace OUT if it is a model folder.")
@as_json
@click.pass_context
def convert(
    ctx: click.Context, /, model: str, out: Path, to: str | None, dtype: str | None, adapter: str | None, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL, a run's name or a folder of any readable format, into the folder OUT.

    Without --to, a folder in a foreign format becomes one in our own layout, and a model of ours goes into the only format
    that can hold it. The written files are read back and compared bit for bit before the folder gets the name OUT.
    """
    from mm.runtime.runs import api

    changes = ctx.meta["composition"].changes
    api.activate(ctx.obj, "cpu", on_stderr)
    from mm.runtime.models import convert as conversion

    folder = conversion.convert(ctx.obj, model, out, to, dtype, changes=changes, adapter=adapter, force=force, say=on_stderr)
    if as_json:
        print_json({"path": folder, "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())}})
        return
    click.echo(f"{folder}: written, and read back bit for bit")
    for path in sorted(folder.iterdir()):
        click.echo(f"  {path.name}  {path.stat().st_size:,} bytes")
