"""`mm train`: train with one algorithm."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm train`."""
    yield CommandSpec(name="train", summary="Train a model with an algorithm.", target="mm.plugins.commands.train.command:train")
