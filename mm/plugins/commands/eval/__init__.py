"""`mm eval`: measure one or several models."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm eval`."""
    yield CommandSpec(
        name="eval",
        summary="Measure models: perplexity of a file, held-out skills.",
        target="mm.plugins.commands.eval.command:evaluate",
    )
