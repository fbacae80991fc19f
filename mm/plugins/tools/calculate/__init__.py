"""A calculator."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    """The tool `calculate`."""
    yield ToolSpec(
        name="calculate",
        summary="A calculator: + - * / % ** and brackets, exact.",
        target="mm.plugins.tools.calculate.tool:Calculate",
    )
