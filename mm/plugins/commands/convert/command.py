"""The command `mm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mm.core.config.load_settings import changes_of, model_section
from mm.core.plugins import PluginManager
from mm.plugins.commands.parts import PartsCommand, Selected, given_layers
from mm.runtime.devices.dtypes import DTYPES


class ConvertCommand(PartsCommand):
    """A command with the settings that may be changed when a trained model is loaded, such as YaRN's."""

    def select(self, plugins: PluginManager, args: list[str]) -> Selected:
        """See `PartsCommand`."""
        return Selected(None, [model_section(plugins)], [])


@click.command(cls=ConvertCommand)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", metavar="NAME", help="A converter (mm plugins --kind converter), or 'native' for our own layout.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Type of the weights; by default the model's, fp32.")
@click.option("--adapter", metavar="NAME:WHERE", help="First merge the adapter of a run or file, as in lora:my-run.")
@click.option("--force", is_flag=True, help="Replace OUT if it is a model folder.")
@click.pass_context
def convert(
    ctx: click.Context, /, model: str, out: Path, to: str | None, dtype: str | None, adapter: str | None, force: bool,
    **values: Any,
) -> None:
    """Write MODEL, a run's name or a folder of any readable format, into the folder OUT.

    Without --to, a folder in a foreign format becomes one in our own layout, and a model of ours goes into the only format
    that can hold it. The written files are read back and compared bit for bit before the folder gets the name OUT.
    """
    from mm.runtime.runs import api

    changes = changes_of(ctx.obj, given_layers(ctx, values))
    say = lambda line: click.echo(line, err=True)  # noqa: E731
    api.activate(ctx.obj, "cpu", say)
    from mm.runtime.models import convert as conversion

    folder = conversion.convert(ctx.obj, model, out, to, dtype, changes=changes, adapter=adapter, force=force, say=say)
    click.echo(f"{folder}: written, and read back bit for bit")
    for path in sorted(folder.iterdir()):
        click.echo(f"  {path.name}  {path.stat().st_size:,} bytes")
