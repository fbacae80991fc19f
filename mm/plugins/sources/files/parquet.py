"""Reading of Parquet files, some hundred rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mm.contracts import Position
from mm.core.errors import DataError, UsageError
from mm.plugins.extras import install_command
from mm.plugins.sources.files.decode import damaged_file, not_json
from mm.plugins.sources.files.parquet_times import with_text_times

_BATCH, _BATCH_BYTES = 256, 1 << 24  # rows that are read at once, and their size: fewer rows if they are large


def read_parquet(shown: str, path: str) -> Iterator[tuple[Position, Mapping[str, Any] | DataError, float]]:
    """Each row or its error, with its position, counted from 1, and the fraction of the file that was read (0 to 1).

    Columns that are null in a row are omitted; values of types that JSON does not have become text, times to the nanosecond.
    `shown` is the path for messages. Raises UsageError if pyarrow is not installed.
    """
    number = 0
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"{shown}: reading Parquet needs pyarrow: {install_command('parquet')}") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise OSError(f"it has the column {twice[0]!r} twice")
            for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata)):
                for row in _rows(batch):
                    number += 1
                    position = Position(path=shown, line=number)
                    row = not_json(position, row.reason) if isinstance(row, DataError) else row
                    yield position, row, number / file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        yield *damaged_file(shown, error, number), 1.0


def _rows_at_once(metadata: Any) -> int:
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(1, min(_BATCH, _BATCH_BYTES * int(metadata.num_rows) // max(1, int(size))))


def _rows(batch: Any) -> Iterator[Mapping[str, Any] | DataError]:
    batch = with_text_times(batch)
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        # Arrow does not validate strings, so one bad string makes the conversion of the whole batch fail: convert row by row
        rows = [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    for row in rows:
        yield row if isinstance(row, DataError) else {k: _plain(v) for k, v in row.items() if v is not None}


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 ({error.reason} at byte {error.start} of a text)")


def _plain(value: Any) -> Any:
    """The value as JSON types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
