"""From a source to pieces of work for encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mm.core.errors import DataError
from mm.core.records import FormatSpec
from mm.runtime.data.bad_rows import ends_reading
from mm.runtime.data.encoding import EncodingJob, job_of
from mm.runtime.data.reader import RowReader
from mm.runtime.data.source import Position, Source

# a piece ends after so many rows, or characters in the texts at their top
_ROWS, _CHARACTERS = 256, 1 << 22

Item = tuple[Position, Mapping[str, Any] | DataError]


def stream(source: Source, reader: RowReader) -> Iterator[Item]:
    """The rows in their order, with an error in the place of one that cannot be read or is not of its file's format.

    Raises DataError for a file that cannot be read on, and UsageError for one of the wrong kind.
    """
    for position, raw in source.entries():
        if isinstance(raw, DataError) and ends_reading(source, raw):
            raise raw
        yield position, raw if isinstance(raw, DataError) else _checked(position, raw, reader)


def read_jobs(source: Source, reader: RowReader, spec: FormatSpec) -> Iterator[EncodingJob]:
    """All rows, as encoding jobs of one format each; `spec` is the format of the first row that can be used."""
    rows: list[tuple[str, int, Mapping[str, Any] | DataError]] = []
    size = 0
    for position, raw in stream(source, reader):
        found = spec if isinstance(raw, DataError) else reader.spec(position, raw)
        if rows and (found is not spec or len(rows) == _ROWS or size > _CHARACTERS):
            yield job_of(spec.name, spec.target, rows)
            rows, size = [], 0
        spec = found
        rows.append((position.path, position.line, raw))
        if not isinstance(raw, DataError):
            size += sum(len(value) for value in raw.values() if isinstance(value, str))
    if rows:
        yield job_of(spec.name, spec.target, rows)


def _checked(position: Position, raw: Mapping[str, Any], reader: RowReader) -> Mapping[str, Any] | DataError:
    """What looks like a row of its file's format is parsed where it is encoded, everything else here."""
    try:
        if not reader.spec(position, raw).fits(raw, reader.row_kind):
            reader.parse(position, raw)
    except DataError as error:
        return error
    return raw
