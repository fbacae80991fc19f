"""`mm data`: check and count rows, write the files of a built-in source, show rows as the model sees them."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm data`."""
    yield CommandSpec(
        name="data",
        summary="Check and count rows; write built-in data; show rows token by token.",
        target="mm.plugins.commands.data.command:data",
    )
