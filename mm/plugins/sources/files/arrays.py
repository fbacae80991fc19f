"""Reads a JSON array of rows, holding one row at a time.

The array is cut at its commas, and each element decoded by itself: rows are read as strictly as lines are, and one that
is bad does not end the reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from mm.contracts import Position
from mm.core.errors import DataError
from mm.plugins.sources.files.decode import BOM, LONGEST, Found, bad, damaged, decode

_CHUNK = 1 << 20
# A string; the beginning of one whose rest has not been read; what gives the array its shape. Possessive, so that a
# long string is walked once.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|(?P<open>")|(?P<shape>[][{},])', re.DOTALL)
_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b",": 0}


def is_array(file: BinaryIO) -> bool:
    """Whether the file begins with a bracket; nothing is consumed."""
    head: bytes = file.peek(4096)  # type: ignore[attr-defined]
    return head.removeprefix(BOM).lstrip()[:1] == b"["


def read_array(path: str, file: BinaryIO) -> Iterator[Found]:
    """Each element's row; positions count elements from 1."""
    number = 0
    try:
        for element in _elements(file):
            number += 1
            position = Position(path=path, line=number)
            yield decode(element, position) if element else (position, bad(position, "not JSON (nothing between two commas)"))
    except DataError as error:
        yield damaged(path, error.reason, number)


def _elements(file: BinaryIO) -> Iterator[bytes]:
    """The text of every element. Raises DataError where the array does not end as it should."""
    buffer, start, place, depth, begun = b"", 0, 0, 0, False
    while more := file.read(max(_CHUNK, len(buffer) - start)):
        buffer, place, start = buffer[start:] + more, place - start, 0
        for token in _TOKENS.finditer(buffer, place):
            if token.lastgroup == "open":
                place = token.start()
                break
            shape = token["shape"]
            if shape is None:
                continue
            depth += _DEEPER[shape]
            if depth == 0 or (depth == 1 and shape == b","):
                element = buffer[start : token.start()].strip()
                if element or begun or depth:  # an empty array has no element
                    yield element
                begun = True
            if depth == 0:
                _check_end(shape, buffer[token.end() :], file)
                return
            if depth == 1 and shape in b"[,":
                start = token.end()
        else:
            place = len(buffer)
        if len(buffer) - start > LONGEST:
            raise DataError(f"a row of more than {LONGEST >> 20} MiB: a quote or a bracket is not closed")
    raise DataError("the array is not closed: the file was not written whole")


def _check_end(shape: bytes, rest: bytes, file: BinaryIO) -> None:
    if shape != b"]":
        raise DataError("the array is closed by a brace")
    while rest:
        if rest.strip():
            raise DataError("something follows the array")
        rest = file.read(_CHUNK)
