"""`mm plugins`: what is installed, what is wrong with it, and how to write and check one's own."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """The part."""
    yield CommandSpec(
        name="plugins", summary="List, describe, write and check plugins.", target="mm.plugins.commands.plugins.command:plugins"
    )
