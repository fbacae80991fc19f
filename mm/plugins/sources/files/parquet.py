"""Reads Parquet files, some hundred rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mm.contracts import Position
from mm.core.errors import DataError, UsageError
from mm.plugins.sources.files.decode import bad, damaged

_BATCH = 256


def read_parquet(path: str) -> Iterator[tuple[Position, Mapping[str, Any] | DataError, float]]:
    """Each row, counted from 1, and how much of the file has been read (0 to 1). A column that is null in a row is not
    in it; values that JSON does not have become text."""
    number = 0
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"{path}: reading Parquet needs pyarrow: pip install 'minimind-ascend[parquet]'") from None
    try:
        with parquet.ParquetFile(Path(path).expanduser()) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in _rows(batch):
                    number += 1
                    position = Position(path=path, line=number)
                    row = bad(position, row.reason) if isinstance(row, DataError) else row
                    yield position, row, number / file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        yield *damaged(path, error, number), 1.0


def _rows(batch: Any) -> Iterator[Mapping[str, Any] | DataError]:
    try:
        found = batch.to_pylist()
    except UnicodeDecodeError:
        # Arrow does not look into its strings, so one bad row would take its whole batch along
        found = [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    for row in found:
        yield row if isinstance(row, DataError) else {k: _plain(v) for k, v in row.items() if v is not None}


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 ({error.reason} at byte {error.start} of a text)")


def _plain(value: Any) -> Any:
    """The value as JSON could hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
