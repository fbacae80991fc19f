"""`mm tokenizer`: train a tokenizer, look into one, compare them."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """The part."""
    yield CommandSpec(
        name="tokenizer",
        summary="Train a tokenizer; look into one; compare them.",
        target="mm.plugins.commands.tokenizer.command:tokenizer",
    )
