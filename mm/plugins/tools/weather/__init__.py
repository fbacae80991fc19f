"""The tool `get_weather` of the skills corpus."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    """The tool `get_weather`, chosen as `--tool weather`."""
    yield ToolSpec(
        name="weather",
        summary="The weather of a city: made up, always the same (get_weather).",
        target="mm.plugins.tools.weather.tool:Weather",
    )
