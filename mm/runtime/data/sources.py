"""Typed rows of any source that `--data` accepts, for the commands that read rows without training on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mm.core.config.sections import Section, section_of
from mm.core.layers import Layer
from mm.core.records import FormatSpec, SourceSpec
from mm.runtime.data.corpus import open_source
from mm.runtime.data.reader import RowReader
from mm.runtime.data.source import Position, Source
from mm.runtime.data.weights import split_weight
from mm.runtime.text.rows import Row

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager


def open_rows(
    plugins: PluginManager, locator: str, row_kind: str = "", parts: Mapping[str, Any] | None = None
) -> tuple[Source, RowReader]:
    """The source that `locator` names, and a reader of its rows. `row_kind` "" accepts the kind that a file holds; `parts` as in
    `open_source`. Raises UsageError if no source, or several, recognise the locator."""
    formats = [spec for _, spec in plugins.owned(FormatSpec)]
    return open_source(plugins, locator, row_kind, parts), RowReader(formats, row_kind)


def read_rows(
    plugins: PluginManager, locator: str, row_kind: str = "", parts: Mapping[str, Any] | None = None
) -> Iterator[tuple[Position, Row]]:
    """Typed rows with their positions. Raises UsageError as `open_rows`, and DataError at the first bad row."""
    source, reader = open_rows(plugins, locator, row_kind, parts)
    for position, row in source.rows():
        yield position, reader.parse(position, row)


def kinds_of(plugins: PluginManager, locator: str) -> tuple[str, ...]:
    """The kinds of row that a built-in source provides; empty for a file, whose rows are of one kind."""
    name, _ = split_weight(plugins, locator)
    specs = [spec for spec in plugins.specs(SourceSpec) if spec.recognise(name)]
    return next((spec.provides for spec in specs if spec.provides), ())


def source_sections(plugins: PluginManager) -> list[Section[Any]]:
    """The options of every source that has some, for a command or stage whose data is not known yet."""
    return [section_of(spec) for spec in plugins.specs(SourceSpec) if spec.config]


def read_sections(sections: Iterable[Section[Any]], layers: Sequence[Layer]) -> dict[str, Any]:
    """The configs of sections by name, for `open_source`. Raises UsageError for an invalid value."""
    return {section.name: section.read(layers) for section in sections}
