"""`mm runs`: the runs of this workspace."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm runs`."""
    yield CommandSpec(
        name="runs",
        summary="List, show, compare, plot and remove the runs of this workspace.",
        target="mm.plugins.commands.runs.command:runs",
    )
