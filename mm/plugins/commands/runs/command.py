"""The commands `mm runs`, and `show`, `diff`, `plot` and `rm` under it; `samples` has a module of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from mm.core.errors import UsageError
from mm.core.workspace import RunFolder, Workspace
from mm.plugins.commands.runs.samples import samples
from mm.runtime.runs import reading

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def runs(ctx: click.Context, as_json: bool) -> None:
    """List the runs of this workspace, the newest first."""
    if not ctx.invoked_subcommand:
        _list(as_json)


@runs.command("list")
@as_json
def list_(as_json: bool) -> None:
    """List the runs, as `mm runs` alone does."""
    _list(as_json)


def _list(as_json: bool) -> None:
    found = Workspace.here().runs()
    if as_json:
        _print_json([run.manifest for run in found])
    elif not found:
        click.echo(f"No runs in {Workspace.here().path / 'runs'}.")
    else:
        _print_table(found)


@runs.command()
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show a run: figures, what it was made of, notes, and every setting with where its value came from."""
    run = Workspace.here().existing(name)
    settings, figures, manifest = reading.settings(run), reading.figures(run), run.manifest
    if as_json:
        _print_json({**manifest, "settings": settings, "figures": figures})
        return
    for key, value in figures.items():
        click.echo(f"{key:<24} {_text(value)}")
    for key, value in reading.origins(run).items():
        if not key.endswith("data") and value is not None:
            click.echo(f"{key:<24} {_text(value)}")
    for kind in ("data", "eval_data"):
        for part in manifest.get(kind, []):
            counts = f"{part['rows']:,} rows, {part['tokens']:,} tokens, {part['digest'][:12]}"
            click.echo(f"{kind:<24} {part['locator']}: {counts}")
    for path in sorted(run.evals.glob("*.json")):
        click.echo(f"{'evaluation':<24} {path}")
    for note in manifest.get("notes", []):
        click.echo(f"{'note':<24} {note}")
    click.echo("settings")
    for key, value in settings.items():
        click.echo(f"  {key} = {value!r}  ({manifest.get('sources', {}).get(key, 'default')})")


@runs.command()
@click.argument("first")
@click.argument("second")
@as_json
def diff(first: str, second: str, as_json: bool) -> None:
    """Show the settings and figures in which two runs differ."""
    workspace = Workspace.here()
    found = reading.differences(workspace.existing(first), workspace.existing(second))
    if as_json:
        _print_json(found)
        return
    for title, rows in found.items():
        click.echo(f"{title}: {'no difference' if not rows else ''}".rstrip())
        for name, (one, other) in rows.items():
            click.echo(f"  {name:<30} {_text(one)} | {_text(other)}")


@runs.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--metric", "metrics", multiple=True,
    help="Metric with its held-out values; several times.  [default: reward, accuracy and margin, or loss]",
)  # fmt: skip
@click.option("--apart", is_flag=True, help="Draw each run in a panel of its own.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("plot.png"), show_default=True, help="PNG to write.")
def plot(names: tuple[str, ...], metrics: tuple[str, ...], apart: bool, out: Path) -> None:
    """Draw metrics of one or several runs over their steps."""
    from mm.plugins.evaluations.plot import plot_runs, telling

    found = [Workspace.here().existing(name) for name in names]
    click.echo(plot_runs(found, metrics or telling(found), out, apart=apart))


@runs.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove runs with everything in their folders; one that is in progress is refused."""
    from mm.plugins.commands.runs.remove import remove, size

    found = [Workspace.here().existing(name) for name in dict.fromkeys(names)]
    for run in found:
        click.echo(f"{run.name}: {run.manifest.get('state', 'no manifest')}, {size(run) / 2**20:,.1f} MiB", err=True)
    if not yes and not _agreed(f"Remove {len(found)} run{'s' * (len(found) > 1)} for ever?"):
        raise UsageError("Nothing was removed.")
    for run in found:
        remove(run)
        click.echo(f"removed {run.name}")


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        raise UsageError("Nothing was removed: where nobody can be asked, pass --yes.") from None


runs.add_command(samples)


def _print_table(found: list[RunFolder]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("run", "algorithm", "state", "step", "parameters", "created"):
        table.add_column(column, justify="right" if column in ("step", "parameters") else "left", no_wrap=column == "run")
    for run in found:
        m = run.manifest
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(m.get("created", 0)))
        step = f"{m.get('step', 0)}/{m.get('steps', '?')}"
        table.add_row(run.name, m.get("algorithm", ""), reading.state(run), step, f"{m.get('parameters', 0):,}", created)
    Console().print(table)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "-" if value in (None, "") else str(value)
