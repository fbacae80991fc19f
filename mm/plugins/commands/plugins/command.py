"""The command `mm plugins`: by default the list of parts, with a name the details of a part; and `new` and `check`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from mm.core.errors import UsageError, close_match
from mm.core.plugins import PluginManager
from mm.plugins.commands.as_json import as_json, print_json
from mm.plugins.commands.groups import CommandGroup
from mm.plugins.commands.plugins import listing, scaffold


class NameOrCommand(CommandGroup):
    """A group in which a word that is not a subcommand is the name of a part or plugin."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, but a word that is not a subcommand is passed to `show`."""
        if args and args[0] not in self.commands:
            return "show", show, args
        return super().resolve_command(ctx, args)


@click.group(cls=NameOrCommand, invoke_without_command=True, subcommand_metavar="[NAME | COMMAND [ARGS]...]")
@click.option("--kind", metavar="KIND", help=f"Only this kind: {', '.join(listing.LISTED_KINDS)}.")
@as_json
@click.pass_context
def plugins(ctx: click.Context, kind: str | None, as_json: bool) -> None:
    """List the installed parts, or describe one.

    NAME is a part (sft), a kind and a part (algorithm.sft, callback.NAME), a plugin (minimind-ascend:algorithm.sft), or a package
    (minimind-ascend), whose parts are listed. For a broken plugin, the traceback is printed.
    """
    known = listing.LISTED_KINDS
    if kind is not None and kind not in known:
        raise UsageError(f"--kind {kind}: no such kind.{close_match(kind, known)} Known: {', '.join(known)}.")
    if ctx.invoked_subcommand is not None:
        if kind or as_json:
            raise UsageError(f"--{'kind' if kind else 'json'} applies to the list, not to {ctx.invoked_subcommand!r}.")
        return
    rows = [row for row in listing.rows(ctx.obj) if kind in (None, row.kind)]
    print_json(listing.as_json(rows)) if as_json else click.echo(listing.as_table(rows))


@click.command()
@click.argument("name")
@as_json
@click.pass_obj
def show(manager: PluginManager, name: str, as_json: bool) -> None:
    """Describe every part and plugin of that name."""
    from mm.plugins.commands.plugins.details import describe, values_of

    print_json(values_of(manager, name)) if as_json else click.echo(describe(manager, name))


@plugins.command()
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(scaffold.KINDS), help="Kind of the part that the package adds.")
@click.option("--out", default=".", metavar="DIR", help="Folder in which the package's folder is created.  [default: .]")
@as_json
@click.pass_obj
def new(manager: PluginManager, name: str, kind: str, out: str, as_json: bool) -> None:
    """Write a package with a working part called NAME, its tests and a README."""
    folder = scaffold.write(manager, name, kind, Path(out))
    part = f"{scaffold.record_kind(kind)}.{name}"
    steps = (f"pip install -e {folder}", f"mm plugins check {part}", f"pip install pytest && pytest {folder}")
    print_json({"folder": folder, "next": steps}) if as_json else click.echo("\n  ".join((f"Wrote {folder}. Next:", *steps)))


@plugins.command()
@click.argument("name")
@click.option(
    "--rows", "path", metavar="FILE",
    help="JSON lines to check with, for a part that takes rows of a kind of its own. Every row must be valid: one that the part "
    "refuses is a failure.",
)  # fmt: skip
@click.option("--data", metavar="TEXT", help="A text of --data that names the source to check.")
@as_json
@click.pass_obj
def check(manager: PluginManager, name: str, path: str | None, data: str | None, as_json: bool) -> None:
    """Run the conformance checks of the part called NAME, or of a plugin's callbacks. Exits with 1 if one fails, or if nothing
    but the declaration could be checked. With --json, what a part prints goes to standard error."""
    from mm.plugins.commands.plugins import checking

    results = []
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        for result in checking.run(manager, name, path, data):
            results.append(result)
            if not as_json:
                click.echo(checking.as_text(result))
    if as_json:
        print_json(checking.as_json(results))
    if faults := checking.faults(results):
        raise click.ClickException(faults)
