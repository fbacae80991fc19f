"""The command `mm eval`."""

from __future__ import annotations

import click

from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands import dialogue
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.evaluations import table
from mm.plugins.evaluations.measure_models import measure_models
from mm.plugins.evaluations.settings import EvalSettings


@click.command("eval", cls=dialogue.ModelCommand, settings=EvalSettings)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--name", default="", metavar="NAME", help="Name of the report; by default made from the data and split.")
@as_json
@click.pass_context
def evaluate(ctx: click.Context, /, models: tuple[str, ...], name: str, as_json: bool) -> None:
    """Measure each MODEL, a run's name or a folder of any readable format, and show the models side by side.

    --data gives perplexity and bits per byte, over the tokens that training on those rows would learn. --skills gives the
    share of right answers, with 95% intervals. The report of a run's model is saved in runs/RUN/evals/.
    """
    reports, unsaved = measure_models(ctx.meta["composition"], models, name, Workspace.here(), on_stderr)
    print_json(reports) if as_json else table.print_reports(reports)
    if unsaved:
        raise unsaved[0]
