"""`mm plugins`: list and describe the installed plugins, write a new one, check one."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm plugins`."""
    yield CommandSpec(
        name="plugins", summary="List, describe, write and check plugins.", target="mm.plugins.commands.plugins.command:plugins"
    )
