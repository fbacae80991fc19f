"""The tool `get_time` of the skills corpus."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    """The tool `get_time`, chosen as `--tool time`."""
    yield ToolSpec(
        name="time",
        summary="The time in a city: made up, always the same (get_time).",
        target="mm.plugins.tools.time.tool:Time",
    )
