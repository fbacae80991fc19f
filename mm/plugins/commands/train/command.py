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
from mm.core.say import command_line, is_main, on_stderr
from mm.core.workspace import RunFolder, Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.launching import end_as, launching, settings_of
from mm.plugins.commands.line import Line, read_line
from mm.plugins.commands.parts import PartsCommand
from mm.plugins.commands.planning import plan_training
from mm.plugins.commands.pretrained import learned_texts
from mm.runtime.runs import api
from mm.runtime.runs.launch import launch_training
from mm.runtime.runs.reading import result
from mm.runtime.runs.recipes import config_layer
from mm.runtime.training.beacon import attach


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
@launching
@click.option("--resume", is_flag=True, help="Resume --run NAME, by default the newest unfinished run.")
@click.option("--dry-run", is_flag=True, help="Print the plan, as mm plan does; train nothing.")
@as_json
@click.pass_context
def train(ctx: click.Context, /, resume: bool, dry_run: bool, as_json: bool, **launching: Any) -> None:
    """Train a model with an algorithm.

    The options below are those of the selected parts: give --algo, --arch and so on to see theirs, with the defaults that
    they have there.
    """
    composition: Composition = ctx.meta["composition"]
    if dry_run:
        plan_training(composition, resume=resume, seconds=None, as_json=as_json)
        return
    workspace, words = Workspace.here(), ["train", *ctx.meta["words"]]
    launched = launch_training(composition, workspace, settings_of(launching), words=words, resume=resume, say=on_stderr)
    if launched:
        end_as(ctx, launched[1])
        return
    attach()
    folder = api.start(composition, workspace, resume=resume, say=on_stderr)
    if is_main():
        print_json(result(folder)) if as_json else click.echo(f"run: {folder.path}")
        if not as_json and folder.manifest["state"] == "finished":
            show = command_line("runs", "show", folder.name, plugins=ctx.obj.options)
            on_stderr(f"next: {_use(composition, folder)}, or {show} for its figures")


def _use(composition: Composition, folder: RunFolder) -> str:
    """The command that uses the model: a model that has learned from texts only continues them and cannot chat."""
    words = ("generate", folder.name, "Hello", "--raw") if learned_texts(composition.plugins, folder) else ("chat", folder.name)
    return command_line(*words, plugins=composition.plugins.options)
