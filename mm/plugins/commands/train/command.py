"""The command `mm train`."""

from __future__ import annotations

from typing import Any

import click
from attrs import frozen

from mm.core.config.autoselect import choose
from mm.core.config.composition import Composition
from mm.core.errors import UsageError
from mm.core.layers import Layer, environment_layer
from mm.core.options import Option, option, options_of
from mm.core.records import AlgorithmSpec
from mm.core.say import command_line, is_main, on_stderr
from mm.core.workspace import RunFolder, Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.line import Line, read_line
from mm.plugins.commands.parts import PartsCommand
from mm.runtime.runs import api
from mm.runtime.runs.reading import result
from mm.runtime.runs.recipes import config_layer


@frozen(kw_only=True)
class _File:
    config: str = option("", help="TOML file or recipe with settings, or FILE:TABLE; the line and MM_TRAIN_* take precedence.")


(CONFIG,) = options_of(_File, section="file")


class TrainCommand(PartsCommand):
    """Composes a training of the line, the environment and the settings file."""

    def compose(self, ctx: click.Context, line: Line) -> Composition:
        """See `PartsCommand`. Parts that would be chosen for the user have their options too."""
        layers: list[Layer] = [line, environment_layer()]
        if config := read_line(line.words, {CONFIG.key: CONFIG})[0].get(CONFIG.key):
            layers.append(config_layer(ctx.obj, config))
        composition = Composition(ctx.obj, layers)
        try:
            return choose(composition, Workspace.here())
        except UsageError:  # reported where the run is resolved, once the line has been parsed
            return composition

    def algorithm(self, composition: Composition) -> str:
        """See `PartsCommand`."""
        return composition.selection.algo

    def default(self, composition: Composition, option: Option) -> Any:
        """See `PartsCommand`. The algorithm and the preset have defaults of their own."""
        try:
            return composition.default(option)
        except UsageError:  # a preset that does not exist: reported where the run is resolved
            return option.default


@click.command(cls=TrainCommand)
@click.option(CONFIG.flag, metavar="FILE|RECIPE[:TABLE]", help=CONFIG.info.help, expose_value=False)  # `compose` has read it
@click.option("--resume", is_flag=True, help="Resume --run NAME, by default the newest unfinished run.")
@click.option("--dry-run", is_flag=True, help="Print the plan with its time, memory and disk space; train nothing.")
@as_json
@click.pass_context
def train(ctx: click.Context, /, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Train a model with an algorithm.

    The options below are those of the selected parts: give --algo, --arch and so on to see theirs, with the defaults that
    they have there.
    """
    composition: Composition = ctx.meta["composition"]
    if dry_run:
        plan = api.plan(composition, Workspace.here(), say=on_stderr, resume=resume, calibrate=True)
        print_json(plan.values) if as_json else click.echo(plan)
        return
    folder = api.start(composition, Workspace.here(), resume=resume, say=on_stderr)
    if is_main():
        print_json(result(folder)) if as_json else click.echo(f"run: {folder.path}")
        if not as_json and folder.manifest["state"] == "finished":
            on_stderr(f"next: {_use(composition, folder)}, or {command_line('runs', 'show', folder.name)} for its figures")


def _use(composition: Composition, folder: RunFolder) -> str:
    """The command that uses the model: a model that has learned from texts only continues them and cannot chat."""
    spec = composition.plugins.get(AlgorithmSpec, folder.manifest["algorithm"])
    learned = spec.needs(spec.config() if spec.config else None).data
    return command_line("generate", folder.name, "Hello", "--raw") if learned == "text" else command_line("chat", folder.name)
