"""Typed rows of whatever `--data` may name, for the commands that look at rows without training on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mm.core.records import FormatSpec, SourceSpec
from mm.runtime.data.corpus import open_source
from mm.runtime.data.reader import RowReader
from mm.runtime.data.source import Position, Source
from mm.runtime.data.weights import split_weight
from mm.runtime.text.rows import Row

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager


def open_rows(plugins: PluginManager, locator: str, row_kind: str = "") -> tuple[Source, RowReader]:
    """What `locator` names, and what reads its rows; "" takes the kind that a file holds. Raises UsageError."""
    return open_source(plugins, locator, row_kind), RowReader(plugins.specs(FormatSpec), row_kind)


def read_rows(plugins: PluginManager, locator: str, row_kind: str = "") -> Iterator[tuple[Position, Row]]:
    """Typed rows with their positions. Raises UsageError, DataError at a bad row."""
    source, reader = open_rows(plugins, locator, row_kind)
    for position, row in source.rows():
        yield position, reader.parse(position, row)


def kinds_of(plugins: PluginManager, locator: str) -> tuple[str, ...]:
    """The kinds of row that a built-in source gives; empty for a file, which holds one kind."""
    name, _ = split_weight(plugins, locator)
    specs = [spec for spec in plugins.specs(SourceSpec) if spec.recognise(name)]
    return next((spec.provides for spec in specs if spec.provides), ())
