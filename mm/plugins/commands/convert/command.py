"""The command `mm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm.core.training.conversion import DTYPES

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", metavar="NAME", help="A converter (mm plugins --kind converter), or 'native' for our own layout.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Type of the weights; by default the model's, fp32.")
@click.option("--adapter", metavar="NAME:PATH", help="Merge this adapter's saved weights first, as in lora:lora_identity.pth.")
@click.option("--force", is_flag=True, help="Replace the model folder that OUT is.")
@click.pass_obj
def convert(
    plugins: PluginManager, model: str, out: Path, to: str | None, dtype: str | None, adapter: str | None, force: bool
) -> None:
    """Write MODEL, a run's name or a folder of any readable format, into the folder OUT.

    Without --to: from a foreign folder into our own layout, else into the only format that can hold the model. What was
    written is read back and compared bit for bit before OUT takes its name.
    """
    from mm.core import api

    api.activate(plugins, "cpu", lambda line: click.echo(line, err=True))
    from mm.core.training import conversion

    say = lambda line: click.echo(line, err=True)  # noqa: E731
    folder = conversion.convert(plugins, model, out, to, dtype, adapter=adapter, force=force, say=say)
    click.echo(f"{folder}: written, and read back bit for bit")
    for path in sorted(folder.iterdir()):
        click.echo(f"  {path.name}  {path.stat().st_size:,} bytes")
