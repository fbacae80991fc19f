"""`mm serve`: models behind an HTTP server with OpenAI's API. The extra `serve` is imported when it runs."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import CommandSpec


@hookimpl
def mm_commands() -> Iterable[CommandSpec]:
    """`mm serve`."""
    yield CommandSpec(
        name="serve", summary="Serve models to clients of OpenAI's API.", target="mm.plugins.commands.serve.command:serve"
    )
