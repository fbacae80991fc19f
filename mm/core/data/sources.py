"""Opening what `--data` names: a file, a built-in source, or whatever a plugin's source recognises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mm.core.contracts import Position, Source
from mm.core.data.reader import RowReader
from mm.core.data.rows import Row
from mm.core.errors import UsageError, close_match
from mm.core.records import FormatSpec, SourceSpec

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager


def find_source(plugins: PluginManager, locator: str) -> SourceSpec:
    """The one source that recognises the text. Raises UsageError when none or several do."""
    specs = [spec for spec in plugins.specs("source") if isinstance(spec, SourceSpec)]
    found = [spec for spec in specs if spec.recognise(locator)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(spec.name for spec in found)
        raise UsageError(f"Several sources take {locator!r}: {names}. Block all but one with -p no:source.NAME.")
    built_in = [spec.name for spec in specs if spec.provides]
    raise UsageError(
        f"{locator!r} is neither a path nor a source.{close_match(locator, built_in)} "
        f"Built-in sources: {', '.join(built_in) or 'none'}."
    )


def open_source(plugins: PluginManager, locator: str, row_kind: str) -> Source:
    """The source of the text, for rows of that kind ("" takes what a file holds). Raises UsageError."""
    spec = find_source(plugins, locator)
    source: Source = plugins.load("source", spec.name)(spec.config() if spec.config else None, locator, row_kind)
    return source


def formats_of(plugins: PluginManager) -> list[FormatSpec]:
    """All formats that are installed."""
    return [spec for spec in plugins.specs("format") if isinstance(spec, FormatSpec)]


def read_rows(plugins: PluginManager, locator: str, row_kind: str = "") -> Iterator[tuple[Position, Row]]:
    """Typed rows with their positions. Raises UsageError, and DataError at a bad row."""
    reader = RowReader(formats_of(plugins), row_kind)
    for position, row in open_source(plugins, locator, row_kind).rows():
        yield position, reader.parse(position, row)
