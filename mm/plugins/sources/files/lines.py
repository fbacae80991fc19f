"""Reads JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from mm.contracts import Position
from mm.plugins.sources.files.decode import BOM, LONGEST, Found, damaged, decode


def read_lines(path: str, file: BinaryIO) -> Iterator[Found]:
    """Each line's row. Blank lines are skipped, but counted; a byte order mark and a missing last newline are fine."""
    for number, line in enumerate(iter(partial(file.readline, LONGEST), b""), 1):
        if len(line) == LONGEST:
            yield damaged(path, f"a line of more than {LONGEST >> 20} MiB", number - 1)
            return
        line = line.removeprefix(BOM) if number == 1 else line
        if line.strip():
            yield decode(line.rstrip(b"\r\n"), Position(path=path, line=number))
