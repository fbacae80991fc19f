"""`mm convert`: write a model in another format."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm convert`."""
    yield CommandSpec(
        name="convert",
        summary="Write a model in another format, from our own layout or to it.",
        target="mm.plugins.commands.convert.command:convert",
    )
