"""The commands `mm runs`, `mm runs show`, `mm runs plot` and, from a module of its own, `mm runs samples`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from mm.core.workspace import RunFolder, Workspace
from mm.plugins.commands.runs.samples import samples


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the manifests as JSON.")
@click.pass_context
def runs(ctx: click.Context, as_json: bool) -> None:
    """List the runs of this workspace, the newest first."""
    if ctx.invoked_subcommand:
        return
    found = Workspace.here().runs()
    if as_json:
        click.echo(json.dumps([run.manifest for run in found], indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"No runs in {Workspace.here().path / 'runs'}.")
    else:
        _print_table(found)


@runs.command()
@click.argument("name")
def show(name: str) -> None:
    """Show a run: its state, every setting with where its value came from, plugins and data."""
    run = Workspace.here().existing(name)
    manifest = run.manifest
    for key in ("state", "error", "algorithm", "architecture", "parameters", "step", "steps", "tokens", "seconds"):
        if key in manifest:
            click.echo(f"{key:<13}{_text(manifest[key])}")
    for title in ("versions", "plugins", "backend"):
        click.echo(f"{title:<13}" + ", ".join(f"{k} {v}" for k, v in manifest.get(title, {}).items()))
    for note in manifest.get("notes", []):
        click.echo(f"note         {note}")
    for part in manifest.get("data", []):
        click.echo(f"data         {part['locator']}: {part['rows']:,} rows, {part['tokens']:,} tokens, {part['digest'][:12]}")
    click.echo("settings")
    _print_settings(run)


@runs.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--metric", default="loss", show_default=True, help="Metric to draw; its held-out values are drawn with it.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("plot.png"), show_default=True, help="PNG to write.")
def plot(names: tuple[str, ...], metric: str, out: Path) -> None:
    """Draw a metric of one or several runs over their steps."""
    from mm.plugins.commands.runs.plot import plot_runs

    workspace = Workspace.here()
    click.echo(plot_runs([workspace.existing(name) for name in names], metric, out))


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
        table.add_row(run.name, m.get("algorithm", ""), m.get("state", ""), step, f"{m.get('parameters', 0):,}", created)
    Console().print(table)


def _print_settings(run: RunFolder) -> None:
    import tomllib

    sources: dict[str, str] = run.manifest.get("sources", {})
    table: dict[str, Any] = tomllib.loads((run.path / "run.toml").read_text(encoding="utf-8"))
    for key, value in table.items():
        inner = {f"{key}_{k}".replace("-", "_"): v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        for name, item in inner.items():
            click.echo(f"  {name} = {item!r}  ({sources.get(name, 'default')})")


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
