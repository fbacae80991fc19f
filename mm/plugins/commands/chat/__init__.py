"""`mm chat`: a conversation in the terminal."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm chat`."""
    yield CommandSpec(name="chat", summary="Chat with a model.", target="mm.plugins.commands.chat.command:chat")
