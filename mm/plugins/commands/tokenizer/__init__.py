"""`mm tokenizer`: train, show and compare tokenizers."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm tokenizer`."""
    yield CommandSpec(
        name="tokenizer",
        summary="Train, show and compare tokenizers.",
        target="mm.plugins.commands.tokenizer.command:tokenizer",
    )
