"""`mm run`: stages of the pipeline."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm run`."""
    yield CommandSpec(
        name="run", summary="Run stages of the pipeline, or presets of them.", target="mm.plugins.commands.run.command:run"
    )
