"""The command `mm train`: layers in, a run out."""

from __future__ import annotations

from typing import Any

import click

from mm.core.say import is_main, on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands.parts import PartsCommand, given_layers
from mm.runtime.runs import api


@click.command(cls=PartsCommand)
@click.option("--config", metavar="FILE", help="Settings in TOML; the command line and MM_TRAIN_* stand above it.")
@click.option("--resume", is_flag=True, help="Go on with --run NAME (the newest unfinished run without it).")
@click.option("--dry-run", is_flag=True, help="Print the plan and touch nothing.")
@click.pass_context
def train(ctx: click.Context, /, config: str | None, resume: bool, dry_run: bool, **values: Any) -> None:
    """Train a model with an algorithm.

    The options below are those of the selected parts: give --algo, --arch and so on to see theirs.
    """
    layers = given_layers(ctx, values)
    if dry_run:
        click.echo(api.plan(ctx.obj, layers, Workspace.here(), say=on_stderr, resume=resume))
        return
    folder = api.start(ctx.obj, layers, Workspace.here(), resume=resume, say=on_stderr)
    if is_main():
        click.echo(f"run: {folder.path}")
