"""`mm docker`: images and containers of the backends."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm docker`."""
    yield CommandSpec(
        name="docker",
        summary="Build images, and run mm in containers with the chip's devices.",
        target="mm.plugins.commands.docker.command:docker",
    )
