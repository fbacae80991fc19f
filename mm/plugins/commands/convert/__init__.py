"""`mm convert`: a model in another format."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """The part."""
    yield CommandSpec(
        name="convert",
        summary="Write a model in another format, from ours or to ours.",
        target="mm.plugins.commands.convert.command:convert",
    )
