"""`mm info`: describe a model, and where it comes from."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm info`."""
    yield CommandSpec(
        name="info", summary="Describe a model: sizes, tokenizer, origin.", target="mm.plugins.commands.info.command:info"
    )
