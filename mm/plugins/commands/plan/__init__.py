"""`mm plan`: what a training or stages of the pipeline would do, need and take."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm plan`."""
    yield CommandSpec(
        name="plan", summary="Plan a training or stages: steps, time, memory, disk space.",
        target="mm.plugins.commands.plan.command:plan",
    )  # fmt: skip
