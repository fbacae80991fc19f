"""Reading of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from mm.contracts import Position
from mm.plugins.sources.files.decode import BOM, MAX_ROW_BYTES, PositionedRow, damaged_file, decode


def read_lines(path: str, file: BinaryIO) -> Iterator[PositionedRow]:
    """The row of each line, or its error. Blank lines are skipped, but counted. A byte order mark and a missing last newline
    are accepted."""
    for number, line in enumerate(iter(partial(file.readline, MAX_ROW_BYTES), b""), 1):
        if len(line) == MAX_ROW_BYTES:
            yield damaged_file(path, f"a line of more than {MAX_ROW_BYTES >> 20} MiB", number - 1)
            return
        line = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
        if line and not line.isspace():
            entry = [decode(line, Position(path=path, line=number))]
            line = b""  # neither the line nor the row is held while the row is used: both may be large
            yield entry.pop()
