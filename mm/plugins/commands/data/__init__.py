"""`mm data`: check and count rows, make a built-in source's files, look at rows as the model sees them."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """The part."""
    yield CommandSpec(
        name="data",
        summary="Check and count rows; make built-in data; show rows token by token.",
        target="mm.plugins.commands.data.command:data",
    )
