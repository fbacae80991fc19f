"""The tool get_weather of the skills corpus."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    """get_weather."""
    yield ToolSpec(
        name="weather",
        summary="Weather of a city, made up and always the same (get_weather).",
        target="mm.plugins.tools.weather.tool:Weather",
    )
