"""What the skills corpus says that search gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Tool
from mm.plugins.tools.canned import function, run_tool


class Search(Tool):
    """How many pages there are, made up: always the same number."""

    schema = function("search")

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """See `run_tool`."""
        return run_tool("search", arguments)
