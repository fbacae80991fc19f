"""The made-up search of the skills corpus as a tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Tool
from mm.plugins.tools.canned import function, run_tool


class Search(Tool):
    """The number of pages for a query: made up, always the same for a query."""

    schema = function("search")

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """See `run_tool`."""
        return run_tool("search", arguments)
