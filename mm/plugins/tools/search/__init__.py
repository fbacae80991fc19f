"""The tool search of the skills corpus."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    """The tool `search`."""
    yield ToolSpec(
        name="search",
        summary="A search that returns a number of pages: made up, always the same.",
        target="mm.plugins.tools.search.tool:Search",
    )
