"""The command `mm run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs
import click

from mm.core.errors import UsageError
from mm.core.layers import Layer, environment_layer
from mm.core.options import Option
from mm.core.records import StageSpec
from mm.core.say import is_main, on_stderr, silent
from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.launching import end_as, launching, settings_of
from mm.plugins.commands.line import COMMAND_LINE, read_line
from mm.plugins.commands.planning import measuring, plan_stages
from mm.plugins.commands.run.next_lines import next_lines
from mm.runtime.runs.in_containers import Chosen, run_in_containers
from mm.runtime.runs.launch import launch_stages
from mm.runtime.runs.launch_settings import LaunchSettings
from mm.runtime.runs.pipeline import expand, ordered, run_stages, stage_options
from mm.runtime.runs.recipes import config_layer
from mm.runtime.runs.stage import Outcome
from mm.runtime.training.beacon import attach


class RunCommand(click.Command):
    """The command, whose help lists the installed stages and presets. The callback finds all words as `ctx.meta["words"]`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's."""
        ctx.meta["words"] = [*args]
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Stages with their summaries, then presets with their stages."""
        stages = ordered(ctx.obj.specs(StageSpec))
        with formatter.section("Stages"):
            formatter.write_dl([(" / ".join((s.name, *s.aliases)), s.summary) for s in stages])
        with formatter.section("Presets"):
            presets = sorted({p for s in stages for p in s.presets})
            formatter.write_dl([(p, ", ".join(s.name for s in ordered(expand(ctx.obj, [p])))) for p in presets])


@click.command(cls=RunCommand, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.option("--config", metavar="FILE|RECIPE", help="TOML file or recipe; its tables [STAGE] are for one stage each. The line "
              "takes precedence.")  # fmt: skip
@click.option("--force", is_flag=True, help="Run stages again whose output is up to date.")
@click.option("--dry-run", is_flag=True, help="Print the plan, as mm plan does; run nothing.")
@measuring
@launching
@click.option("--only", default="", metavar="STAGE", help="Run this one of the stages; their options stay those of all.")
@click.option("--docker", is_flag=True, help="Run each stage in a container of the image of --backend; see mm docker.")
@click.option("--devices", default="all", metavar="N|0,1", help="With --docker: the cards in the containers.  [default: all]")
@click.option("--image", default="", metavar="NAME", help="With --docker: the image, instead of the backend's.")
@as_json
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="STAGE... [--OPTION VALUE]...")
@click.pass_context
def run(
    ctx: click.Context, /, config: str | None, force: bool, dry_run: bool, measure_seconds: float | None, only: str, docker: bool,
    devices: str, image: str, as_json: bool, words: tuple[str, ...], **launching: Any,
) -> None:  # fmt: skip
    """Run stages of the pipeline in their order; a stage whose inputs are unchanged and whose output exists is skipped.

    Options of the stages are those of `mm train`, for every stage that has them: --epochs 1; or for one: --sft-epochs 1.
    """
    names, layers = _read(ctx, words, config)

    def report(outcomes: list[Outcome]) -> None:
        if as_json and is_main():
            print_json([attrs.asdict(outcome) for outcome in outcomes])
        elif is_main() and not dry_run:
            print_outcomes(outcomes)

    if docker:
        if only:
            raise UsageError(f"--only {only}: with --docker, name that stage alone.")
        again = [*words, *(["--config", config] if config else []), *(["--force"] if force else [])]
        again += [f"--{key.replace('_', '-')}={text}" for key, text in launching.items() if text is not None]
        chosen = Chosen(backend=_named_backend(layers), devices=devices, image=image)
        layers.append(Layer(origin=COMMAND_LINE, values={"docker": True, "image": image}, lenient=True))
        run_in_containers(
            ctx.obj, names, again, chosen, Workspace.here(), layers, dry_run=dry_run, say=on_stderr, report=report
        )
    elif dry_run:
        plan_stages(ctx.obj, names, layers, force=force, seconds=measure_seconds, as_json=as_json, only=only)
    else:
        _run(ctx, names, layers, settings_of(launching), force=force, only=only, report=report)


def _run(
    ctx: click.Context, names: Sequence[str], layers: Sequence[Layer], settings: LaunchSettings, *, force: bool, only: str,
    report: Callable[[list[Outcome]], None],
) -> None:  # fmt: skip
    """Run the stages, on ranks if several are asked for."""
    if ended := launch_stages(ctx.obj, layers, settings, ["run", *ctx.meta["words"]], Workspace.here(), on_stderr):
        end_as(ctx, ended)
        return
    attach()
    say = on_stderr if is_main() else silent
    artifacts = run_stages(
        ctx.obj, names, Workspace.here(), layers, force=force, dry_run=False, say=say, report=report, only=only
    )
    if is_main() and (lines := next_lines(artifacts, ctx.obj.options)):
        click.echo("Type next:\n" + "\n".join(f"  {line}" for line in lines), err=True)


def _read(ctx: click.Context, words: Sequence[str], config: str | None) -> tuple[list[str], list[Layer]]:
    """The names of the stages, and the layers of values for them. Raises UsageError if no stage is named."""
    known = stage_options(ctx.obj)
    names, options = read_stages(words, known)
    if not names and (unknown := sorted(options.keys() - known.keys())):
        raise click.NoSuchOption(f"--{unknown[0].replace('_', '-')}", ctx=ctx)
    if not names:
        raise UsageError("Missing argument STAGE: name stages or a preset, such as 'all'; mm run --help lists them.")
    layers = [Layer(origin=COMMAND_LINE, values=options, textual=True), environment_layer()]
    return names, [*layers, *([config_layer(ctx.obj, config)] if config else [])]


def _named_backend(layers: Sequence[Layer]) -> str:
    """The backend that a layer names. Raises UsageError if none does: this environment may not be able to judge it."""
    name = next((layer.values["backend"] for layer in layers if "backend" in layer.values), "auto")
    if name == "auto":
        raise UsageError("--docker needs the chip whose image is used: name it, such as --backend cpu.")
    return str(name)


def read_stages(words: Sequence[str], known: Mapping[str, Option]) -> tuple[list[str], dict[str, Any]]:
    """The names of the stages, and the options between them as flat text values. Raises UsageError for a missing value.

    An unknown option gets an empty value, and the next word counts as its value: the caller refuses it, naming the stages.
    """
    values, rest = read_line(words, known)
    unknown = {word: word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")}
    taken = {after for word, after in pairwise(words) if word in unknown and "=" not in word}
    return [word for word in rest if word not in unknown and word not in taken], {**values, **dict.fromkeys(unknown.values(), "")}


def print_outcomes(outcomes: list[Outcome]) -> None:
    """Print the summary as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in ("stage", "state", "time", "result"):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for outcome in outcomes:
        minutes, seconds = divmod(round(outcome.seconds or 0.0), 60)
        table.add_row(outcome.stage, outcome.state, f"{minutes}:{seconds:02d}", outcome.summary)
    Console(stderr=True).print(table)
