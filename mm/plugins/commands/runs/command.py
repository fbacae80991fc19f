"""The commands `mm runs`, `list`, `show`, `diff`, `plot` and `rm`. `mm runs samples` and `prune` are in files of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.groups import CommandGroup
from mm.plugins.commands.runs.prune import prune
from mm.plugins.commands.runs.rollout_samples import samples
from mm.plugins.commands.runs.table import table_of
from mm.runtime.models.provenance import missing_packages
from mm.runtime.runs import reading
from mm.runtime.text.wording import count_text, value_text
from mm.runtime.training.meanings import meanings_of


@click.group(cls=CommandGroup, invoke_without_command=True)
@as_json
@click.pass_context
def runs(ctx: click.Context, as_json: bool) -> None:
    """List the runs of this workspace, newest first."""
    if not ctx.invoked_subcommand:
        _list(ctx.obj, as_json)


@runs.command("list")
@as_json
@click.pass_obj
def list_(manager: PluginManager, as_json: bool) -> None:
    """List the runs: the same as `mm runs`."""
    _list(manager, as_json)


def _list(manager: PluginManager, as_json: bool) -> None:
    folders = Workspace.here().runs()
    entries = [reading.overview(run) for run in folders]
    if as_json:
        figures = [{} if run.damage else reading.figures(run) for run in folders]
        print_json([{**entry, "figures": values} for entry, values in zip(entries, figures, strict=True)])
    elif not folders:
        click.echo(f"No runs in {Workspace.here().path / 'runs'}.")
    else:
        click.echo(table_of(folders, entries, shutil.get_terminal_size().columns))
    for entry in entries:
        if entry["state"] == "damaged" and not as_json:
            on_stderr(entry["error"])
    for line in missing_packages(manager, folders):
        on_stderr(line)


@runs.command()
@click.argument("name")
@as_json
@click.pass_obj
def show(manager: PluginManager, name: str, as_json: bool) -> None:
    """Show a run: its metrics, parts, data, notes, and every setting with where its value came from."""
    run = Workspace.here().existing(name)
    settings, metrics, manifest = reading.settings(run), reading.figures(run, on_stderr), run.manifest
    for line in missing_packages(manager, [run]):
        on_stderr(line)
    if as_json:
        print_json({**manifest, "settings": settings, "figures": metrics})
        return
    steps = reading.metric_steps(run)
    for key, value in metrics.items():
        of = f"  (step {steps[key]:,})" if steps.get(key, metrics.get("step")) != metrics.get("step") else ""
        click.echo(f"{key:<24} {_text(value)}{of}")
    for key, value in reading.origins(run).items():
        if not key.endswith("data") and value is not None:
            click.echo(f"{key:<24} {_text(value)}")
    for kind in ("data", "eval_data"):
        for part in manifest.get(kind, []):
            counts = f"{count_text(part['rows'], 'row')}, {part['tokens']:,} tokens, {part['digest'][:12]}"
            click.echo(f"{kind:<24} {part['locator']}: {counts}")
    for path in sorted(run.evals.glob("*.json")):
        click.echo(f"{'evaluation':<24} {path}")
    for note in manifest.get("notes", []):
        click.echo(f"{'note':<24} {note}")
    if meanings := meanings_of(metrics):
        click.echo("metrics")
    for key, value in meanings.items():
        click.echo(f"  {key:<22} {value}")
    click.echo("settings")
    for key, value in settings.items():
        click.echo(f"  {key} = {value_text(value)}  ({manifest.get('sources', {}).get(key, 'default')})")


@runs.command()
@click.argument("first")
@click.argument("second")
@as_json
def diff(first: str, second: str, as_json: bool) -> None:
    """Show the settings, parts and metrics in which two runs differ."""
    workspace = Workspace.here()
    differences = reading.differences(workspace.existing(first), workspace.existing(second), on_stderr)
    if as_json:
        print_json(differences)
        return
    for title, rows in differences.items():
        click.echo(f"{title}: {'no difference' if not rows else ''}".rstrip())
        for name, (one, other) in rows.items():
            click.echo(f"  {name:<30} {_text(one)} | {_text(other)}")


@runs.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--metric", "metrics", multiple=True,
    help="Metric to plot, with its held-out values; may be given several times.  "
    "[default: reward, accuracy and margin, or loss]",
)  # fmt: skip
@click.option("--apart", is_flag=True, help="Plot each run in a panel of its own.")
@click.option("--out", type=click.Path(path_type=Path), help="PNG to write.  [default: plot.png in the first run's folder]")
@click.option("--force", is_flag=True, help="Overwrite --out if it exists.")
@as_json
def plot(names: tuple[str, ...], metrics: tuple[str, ...], apart: bool, out: Path | None, force: bool, as_json: bool) -> None:
    """Plot metrics of one or several runs over their steps."""
    from mm.plugins.evaluations.plot import default_metrics, plot_place, plot_runs

    folders = [Workspace.here().existing(name) for name in names]
    place = plot_place(folders, out, force)
    for run in folders:
        reading.metric_lines(run, on_stderr)  # reports damaged lines
    shown = metrics or default_metrics(folders)
    path = plot_runs(folders, shown, place, apart=apart)
    print_json({"path": path, "metrics": shown}) if as_json else click.echo(path)


@runs.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@as_json
def rm(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove runs with everything in their folders. A run that is in progress is refused."""
    from mm.plugins.commands.runs.prune import size
    from mm.plugins.commands.runs.remove import remove

    folders = [Workspace.here().existing(name) for name in dict.fromkeys(names)]
    for run in folders:
        click.echo(f"{run.name}: {reading.overview(run)['state']}, {size(run.path) / 2**20:,.1f} MiB", err=True)
    if not yes and not _confirm(f"Remove {count_text(len(folders), 'run')} permanently?"):
        raise UsageError("Nothing was removed.")
    for run in folders:
        remove(run)
        if not as_json:
            click.echo(f"removed {run.name}")
    if as_json:
        print_json({"removed": [run.name for run in folders]})


def _confirm(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        raise UsageError("Nothing was removed: the question was not answered. Pass --yes to remove without asking.") from None


runs.add_command(samples)
runs.add_command(prune)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "-" if value in (None, "") else str(value)
