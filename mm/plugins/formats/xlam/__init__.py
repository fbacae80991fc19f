"""Function calls in the shape of the xlam data: a query, the tools, and the calls to make."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has all three."""
    return row.keys() >= {"query", "tools", "answers"}


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `xlam`."""
    yield FormatSpec(
        name="xlam",
        summary="Function calls: query, tools and answers, which are the calls.",
        target="mm.plugins.formats.xlam.format:XlamFormat",
        row="chat",
        recognise=recognise,
        example={"query": "...", "tools": [], "answers": [{"name": "...", "arguments": {}}]},
    )
