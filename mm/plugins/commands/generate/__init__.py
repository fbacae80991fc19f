"""`mm generate`: answer one prompt."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm generate`."""
    yield CommandSpec(
        name="generate",
        summary="Answer a prompt, or continue a text with --raw.",
        target="mm.plugins.commands.generate.command:generate",
    )
