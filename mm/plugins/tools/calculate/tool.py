"""The calculator as a tool, with the name and schema that the skills corpus uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Tool
from mm.plugins.tools.calculate.arithmetic import calculate
from mm.plugins.tools.canned import function


class Calculate(Tool):
    """Evaluates an expression: an int if the value is whole, else the nearest float."""

    schema = function("calculate")

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """`{"result": value}`. Raises ValueError as `calculate`."""
        return {"result": calculate(arguments["expression"])}
