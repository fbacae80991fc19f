"""What the skills corpus says that get_weather gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Tool
from mm.plugins.tools.canned import function, run_tool


class Weather(Tool):
    """The weather of a city, made up: a temperature that is always the same one."""

    schema = function("get_weather")

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """See `run_tool`."""
        return run_tool("get_weather", arguments)
