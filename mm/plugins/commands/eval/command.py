"""The command `mm eval`."""

from __future__ import annotations

import json
from typing import Any

import click

from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands import dialogue
from mm.plugins.evaluations import measure, report, table
from mm.plugins.evaluations.settings import EvalSettings
from mm.runtime.models.finding import find_model


@click.command("eval", cls=dialogue.ModelCommand, settings=EvalSettings)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--name", default="", metavar="NAME", help="Name of the report; by default made from the data and split.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@click.pass_context
def evaluate(ctx: click.Context, /, models: tuple[str, ...], name: str, as_json: bool) -> None:
    """Measure each MODEL, a run's name or a folder of any readable format, and show the models side by side.

    --data gives perplexity and bits per byte, over the tokens that training on those rows would learn. --skills gives the
    share of right answers, with 95% intervals. The report of a run's model is saved in runs/RUN/evals/.
    """
    inference, settings = dialogue.resolve(ctx)
    measure.check_settings(ctx.obj, settings)
    workspace = Workspace.here()
    report.check_free([find_model(model, workspace) for model in models], name)
    dialogue.activate(ctx.obj, inference)
    from mm.runtime.generation import text_model

    unsaved: list[OSError] = []

    def evaluate_and_save(model: str) -> dict[str, Any]:
        text = text_model.load(ctx.obj, model, workspace, inference)
        result = report.evaluate(ctx.obj, model, text, inference, settings, workspace, on_stderr)
        try:
            path = report.save(result, name)
        except OSError as error:  # the results are printed all the same
            unsaved.append(error)
        else:
            on_stderr(f"report: {path}" if path else f"report: not saved, {model} belongs to no run; --json prints it")
        return result

    reports = [evaluate_and_save(model) for model in models]
    if as_json:
        click.echo(json.dumps(reports, indent=1, ensure_ascii=False))
    else:
        table.print_reports(reports)
    if unsaved:
        raise unsaved[0]
