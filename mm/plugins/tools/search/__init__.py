"""The tool search of the skills corpus."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    """search."""
    yield ToolSpec(
        name="search",
        summary="A search that gives a number of pages, made up and always the same.",
        target="mm.plugins.tools.search.tool:Search",
    )
