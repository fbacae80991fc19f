"""The rows of a source as jobs for encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mm.core.errors import DataError
from mm.core.records import FormatSpec
from mm.runtime.data.bad_rows import ends_reading
from mm.runtime.data.encoding import EncodingJob, make_job
from mm.runtime.data.reader import RowReader, fits
from mm.runtime.data.source import Position, Source

# a job ends after so many rows, or after so many characters in the text fields at the top level of its rows
_ROWS, _CHARACTERS = 256, 1 << 22

Item = tuple[Position, Mapping[str, Any] | DataError]


def stream(source: Source, reader: RowReader) -> Iterator[Item]:
    """The rows in their order, with an error in place of a row that cannot be read or is not in the format of its file.

    Raises DataError if the rest of a file cannot be read, and UsageError if a file has rows of the wrong kind.
    """
    for position, raw in source.entries():
        if isinstance(raw, DataError) and ends_reading(source, raw):
            raise raw
        yield position, raw if isinstance(raw, DataError) else _check(position, raw, reader)


def read_jobs(source: Source, reader: RowReader, spec: FormatSpec) -> Iterator[EncodingJob]:
    """All rows as encoding jobs of one format each; `spec` is the format of the first usable row."""
    rows: list[tuple[str, int, Mapping[str, Any] | DataError]] = []
    size = 0
    for position, raw in stream(source, reader):
        row_spec = spec if isinstance(raw, DataError) else reader.spec(position, raw)
        if rows and (row_spec is not spec or len(rows) == _ROWS or size > _CHARACTERS):
            yield make_job(spec.name, spec.target, rows)
            rows, size = [], 0
        spec = row_spec
        rows.append((position.path, position.line, raw))
        if not isinstance(raw, DataError):
            size += sum(len(value) for value in raw.values() if isinstance(value, str))
    if rows:
        yield make_job(spec.name, spec.target, rows)


def _check(position: Position, raw: Mapping[str, Any], reader: RowReader) -> Mapping[str, Any] | DataError:
    """The row, or its error. A row that its file's format recognises is left for the encoder to parse; only others are
    parsed here."""
    try:
        if not fits(reader.spec(position, raw), raw, reader.row_kind):
            reader.parse(position, raw)
    except DataError as error:
        return error
    return raw
