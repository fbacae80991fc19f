"""The command `mm run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs
import click

from mm.core.errors import UsageError
from mm.core.layers import Layer, environment_layer
from mm.core.options import Option
from mm.core.records import StageSpec
from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.line import COMMAND_LINE, read_line
from mm.plugins.commands.run.next_lines import next_lines
from mm.runtime.runs.pipeline import expand, ordered, run_stages, stage_options
from mm.runtime.runs.recipes import config_layer
from mm.runtime.runs.stage import Outcome


class RunCommand(click.Command):
    """The command, whose help lists the installed stages and presets."""

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
@click.option("--dry-run", is_flag=True, help="Print what would be done, with its time and disk space; run nothing.")
@as_json
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="STAGE... [--OPTION VALUE]...")
@click.pass_context
def run(ctx: click.Context, config: str | None, force: bool, dry_run: bool, as_json: bool, words: tuple[str, ...]) -> None:
    """Run stages of the pipeline in their order; a stage whose inputs are unchanged and whose output exists is skipped.

    Options of the stages are those of `mm train`, for every stage that has them: --epochs 1; or for one: --sft-epochs 1.
    """
    names, options = read_stages(words, stage_options(ctx.obj))
    if not names:
        raise UsageError("Missing argument STAGE: name stages or a preset, such as 'all'; mm run --help lists them.")
    layers = [Layer(origin=COMMAND_LINE, values=options, textual=True), environment_layer()]
    if config:
        layers.append(config_layer(ctx.obj, config))

    def report(outcomes: list[Outcome]) -> None:
        if as_json:
            print_json([attrs.asdict(outcome) for outcome in outcomes])
        elif not dry_run:
            print_outcomes(outcomes)

    artifacts = run_stages(
        ctx.obj, names, Workspace.here(), layers, force=force, dry_run=dry_run, calibrate=dry_run, say=on_stderr, report=report
    )
    if not dry_run and (lines := next_lines(artifacts)):
        click.echo("Type next:\n" + "\n".join(f"  {line}" for line in lines), err=True)


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
