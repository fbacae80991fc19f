"""`mm launch`: hands a training to a cluster's own scheduler."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm launch`."""
    yield CommandSpec(
        name="launch",
        summary="Write the job script of a training for a cluster, and submit it.",
        target="mm.plugins.commands.launch.command:launch",
    )
