"""The command `mm data list`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click

from mm.core.records import SourceSpec
from mm.plugins.commands.as_json import as_json, print_json

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.hubs.catalogue import Entry


@click.command("list")
@as_json
@click.pass_obj
def list_names(plugins: PluginManager, as_json: bool) -> None:
    """List the built-in data, and the data sets and models of the hubs that have a short name, with the option for each."""
    from mm.runtime.hubs.catalogue import catalogue

    built_in = [spec for spec in plugins.specs(SourceSpec) if spec.provides]
    entries = catalogue(plugins)
    if as_json:
        sources = [{"name": spec.name, "summary": spec.summary, "rows": list(spec.provides)} for spec in built_in]
        print_json({"built_in": sources, "hub": [{**attrs.asdict(entry), "use": entry.use} for entry in entries]})
        return
    click.echo("Built-in data, part of mm:")
    for spec in built_in:
        click.echo(f"  --data {spec.name}  {', '.join(spec.provides)} rows")
    here = [entry for entry in entries if not entry.gone]
    _print("Data sets of the hubs:", [entry for entry in here if entry.kind == "dataset"])
    _print("Models of the hubs (--from, mm chat, mm convert, mm info):", [entry for entry in here if entry.kind == "model"])
    click.echo("\nNo longer on the hubs:")
    for entry in entries:
        if entry.gone:
            _echo(f"{entry.name}: {f'use {entry.instead}' if entry.instead else 'no successor'}", 2)
            _echo(entry.summary, 4)
    click.echo()
    _echo("ms:NAME takes it from ModelScope, if it is on ms. Any other is hub:OWNER/NAME or ms:OWNER/NAME, with", 0)
    _echo("@REVISION and :FILE behind it if needed.", 0)


def _print(title: str, entries: Sequence[Entry]) -> None:
    click.echo(f"\n{title}")
    for entry in entries:
        hubs = ", ".join(hub for hub in ("hub", "ms") if getattr(entry, hub))
        facts: list[Any] = [f"on {hubs}", entry.size or "size unknown"]
        if entry.rows:
            facts.append(f"{entry.rows} rows")
        if entry.stage:
            facts.append(f"for {', '.join(entry.stage)}")
        _echo(entry.use, 2)
        for line in (entry.summary, "; ".join(facts), f"licence: {entry.licence or 'unknown'}"):
            _echo(line, 4)


def _echo(text: str, indent: int) -> None:
    """Print a text in lines of at most 80 characters."""
    click.echo(textwrap.fill(text, 80, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)))
