"""The calculator, under the name and schema that the skills corpus teaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Tool
from mm.plugins.tools.calculate.arithmetic import calculate
from mm.plugins.tools.canned import function


class Calculate(Tool):
    """The value of an expression: a whole number where it is one, else the nearest float."""

    schema = function("calculate")

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """`{"result": value}`; see `calculate`."""
        return {"result": calculate(arguments["expression"])}
