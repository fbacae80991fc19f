"""Reading of a JSON array of rows, with one row in memory at a time.

The array is split at its commas, and each element is decoded separately: rows are checked as strictly as those of JSON
lines, and reading continues after a bad row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from mm.contracts import Position
from mm.core.errors import DataError
from mm.plugins.sources.files.decode import BOM, MAX_ROW_BYTES, PositionedRow, damaged_file, decode, not_json

_CHUNK = 1 << 20
# A whole string; the quote of a string whose end has not been read yet; a bracket or comma. Possessive quantifiers, so that
# a long string is scanned only once.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|(?P<open>")|(?P<shape>[][{},])', re.DOTALL)
_DEPTH_CHANGE = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b",": 0}


def is_array(file: BinaryIO) -> bool:
    """True if the file starts with a bracket; the position in the file does not change."""
    head: bytes = file.peek(4096)  # type: ignore[attr-defined]
    return head.removeprefix(BOM).lstrip()[:1] == b"["


def read_array(path: str, file: BinaryIO) -> Iterator[PositionedRow]:
    """The row of each element, or its error; positions count elements from 1."""
    number = 0
    try:
        for element in _elements(file):
            number += 1
            position = Position(path=path, line=number)
            if element:
                yield decode(element, position)
            else:
                yield position, not_json(position, "not JSON (nothing between two commas)")
    except DataError as error:
        yield damaged_file(path, error.reason, number)


def _elements(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of every element, empty if there is nothing between two commas. Raises DataError if the array does not end
    correctly."""
    # `start`: of the current element; `scanned`: the end of the part of the buffer whose tokens have been read
    buffer, start, scanned, depth, has_elements = b"", 0, 0, 0, False
    while more := file.read(max(_CHUNK, len(buffer) - start)):
        buffer, scanned, start = buffer[start:] + more, scanned - start, 0
        for token in _TOKENS.finditer(buffer, scanned):
            if token.lastgroup == "open":
                scanned = token.start()
                break
            shape = token["shape"]
            if shape is None:
                continue
            depth += _DEPTH_CHANGE[shape]
            if depth == 0 or (depth == 1 and shape == b","):
                element = buffer[start : token.start()].strip()
                if element or has_elements or depth:  # an empty array has no element
                    yield element
                has_elements = True
            if depth == 0:
                _check_end(shape, buffer[token.end() :], file)
                return
            if depth == 1 and shape in b"[,":
                start = token.end()
        else:
            scanned = len(buffer)
        if len(buffer) - start > MAX_ROW_BYTES:
            raise DataError(f"a row of more than {MAX_ROW_BYTES >> 20} MiB: a quote or a bracket is not closed")
    raise DataError("the array is not closed: the file is incomplete")


def _check_end(shape: bytes, rest: bytes, file: BinaryIO) -> None:
    if shape != b"]":
        raise DataError("the array ends with a brace")
    while rest:
        if rest.strip():
            raise DataError("there is text after the array")
        rest = file.read(_CHUNK)
