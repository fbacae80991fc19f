"""The made-up weather of the skills corpus as a tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Tool
from mm.plugins.tools.canned import function, run_tool


class Weather(Tool):
    """The temperature in a city: made up, always the same for a city."""

    schema = function("get_weather")

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """See `run_tool`."""
        return run_tool("get_weather", arguments)
