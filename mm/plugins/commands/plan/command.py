"""The command `mm plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from mm.core.errors import UsageError
from mm.core.layers import Layer, environment_layer
from mm.core.records import StageSpec
from mm.core.say import on_stderr
from mm.plugins.commands.as_json import as_json
from mm.plugins.commands.launching import launching, settings_of
from mm.plugins.commands.line import COMMAND_LINE
from mm.plugins.commands.planning import MEASURE, measuring, plan_stages, plan_training
from mm.plugins.commands.run.command import read_stages
from mm.plugins.commands.train.command import CONFIG, TrainCommand
from mm.runtime.runs.launch_settings import LAUNCH
from mm.runtime.runs.pipeline import stage_options
from mm.runtime.runs.recipes import config_layer

# words of the line that are the command's own and have no value
_FLAGS = ("--json", "--force", "--resume")


class PlanCommand(TrainCommand):
    """The words are those of `mm train` or, if they name stages or presets of them, those of `mm run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's. The callback finds the names of the stages as `ctx.meta["stages"]`, and their options as the layer."""
        ctx.meta["stages"], ctx.meta["layer"] = [], None
        stages = {name for spec in ctx.obj.specs(StageSpec) for name in (spec.name, *spec.aliases, *spec.presets)}
        if "--help" in args or not stages & {*args} or not self._reads_stages(ctx, args):
            return super().parse_args(ctx, args)
        return click.Command.parse_args(self, ctx, ctx.meta["own"])

    def _reads_stages(self, ctx: click.Context, args: Sequence[str]) -> bool:
        of_the_command = {option.key: option for option in (CONFIG, MEASURE, *LAUNCH)}
        names, values = read_stages([word for word in args if word not in _FLAGS], {**stage_options(ctx.obj), **of_the_command})
        own = [word for key, option in of_the_command.items() if key in values for word in (option.flag, values.pop(key))]
        ctx.meta["stages"], ctx.meta["own"] = names, [*own, *(word for word in args if word in _FLAGS)]
        ctx.meta["layer"] = Layer(origin=COMMAND_LINE, values=values, textual=True)
        return bool(names)


@click.command(cls=PlanCommand)
@click.option(CONFIG.flag, "config", metavar="FILE|RECIPE[:TABLE]", help=CONFIG.info.help)
@click.option("--resume", is_flag=True, help="Plan the rest of --run NAME, by default of the newest unfinished run.")
@click.option("--force", is_flag=True, help="Plan stages again whose output is up to date.")
@measuring
@launching
@as_json
@click.pass_context
def plan(
    ctx: click.Context, /, config: str | None, resume: bool, force: bool, measure_seconds: float | None, as_json: bool,
    **launching: Any,
) -> None:
    """Print what a training would do, with its time, memory and disk space; train nothing.

    The words are those of 'mm train', as in: mm plan --algo sft --data chats.jsonl. If they name stages or a preset of stages,
    they are those of 'mm run': mm plan core --config examples/demo.toml
    """
    if (nnodes := settings_of(launching).nnodes) > 1:
        on_stderr(f"--nnodes {nnodes}: this plan is for one machine; with others each rank has fewer rows of a batch")
    if not ctx.meta["stages"]:
        if force:
            raise UsageError("--force is for stages: name some, as in 'mm plan core --force'.")
        plan_training(ctx.meta["composition"], resume=resume, seconds=measure_seconds, as_json=as_json)
        return
    if resume:
        raise UsageError("--resume is for a training; stages resume by themselves: leave it out.")
    layers = [ctx.meta["layer"], environment_layer(), *([config_layer(ctx.obj, config)] if config else [])]
    plan_stages(ctx.obj, ctx.meta["stages"], layers, force=force, seconds=measure_seconds, as_json=as_json)
