"""Reading of a JSON array of rows, or of JSON objects over several lines, with one row in memory at a time.

An array is split at its commas, and objects at their last braces. Each piece is decoded separately: rows are checked as
strictly as those of JSON lines, and reading continues after a bad row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mm.contracts import Position
from mm.core.errors import DataError
from mm.plugins.sources.files.decode import BOM, MAX_ROW_BYTES, PositionedRow, damaged_file, decode, not_json

_CHUNK = 1 << 20
# A whole string; the quote of a string whose end has not been read yet; a bracket or comma. Possessive quantifiers, so that
# a long string is scanned only once.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|(?P<open>")|(?P<shape>[][{},])', re.DOTALL)
_DEPTH_CHANGE = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b",": 0}

Split = Callable[[BinaryIO], Iterator[bytes]]


def split_of(file: BinaryIO) -> Split | None:
    """The function that splits a .json file: one for an array, one for objects over several lines; None if it has JSON lines.
    The position in the file does not change."""
    head = file.read(_CHUNK)
    file.seek(0)
    head = head.removeprefix(BOM).lstrip()
    if head[:1] == b"[":
        return elements
    first, line_break, _ = head.partition(b"\n")
    depth = 0
    for token in _TOKENS.finditer(first):
        if token.lastgroup == "open":  # no printer breaks a line inside a string: this is a line that was cut
            return None
        depth += _DEPTH_CHANGE[token["shape"]] if token["shape"] else 0
    return objects if line_break and depth > 0 else None


def read_pieces(shown: str, file: BinaryIO, split: Split) -> Iterator[PositionedRow]:
    """The row of each piece, or its error; positions count pieces from 1."""
    number = 0
    try:
        for piece in split(file):
            number += 1
            position = Position(path=shown, line=number)
            if piece:
                yield decode(piece, position)
            else:
                yield position, not_json(position, "not JSON (nothing between two commas)")
    except DataError as error:
        yield damaged_file(shown, error.reason, number)


def elements(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of every element of an array, empty if there is nothing between two commas. Raises DataError if the array does
    not end correctly."""
    scanner, depth, has_elements = _Scanner(file), 0, False
    for shape, begin, end in scanner.shapes():
        depth += _DEPTH_CHANGE[shape]
        if depth == 0 or (depth == 1 and shape == b","):
            element = scanner.cut(begin, end)
            if element or has_elements or depth:  # an empty array has no element
                yield element
            has_elements = True
        if depth == 0:
            _check_end(shape, scanner.buffer[end:], file)
            return
        if depth == 1 and shape == b"[":
            scanner.start = end
    raise DataError("the array is not closed: the file is incomplete")


def objects(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of every object that stands at the top. Raises DataError if the last one does not end."""
    scanner, depth = _Scanner(file), 0
    for shape, _, end in scanner.shapes():
        depth += _DEPTH_CHANGE[shape]
        if depth < 0:
            raise DataError("a bracket too many is closed")
        if depth == 0 and shape != b",":
            yield scanner.cut(end, end).removeprefix(BOM)
    if scanner.buffer[scanner.start :].strip():
        raise DataError("an object is not closed: the file is incomplete")


class _Scanner:
    """Reads a file bracket by bracket. `buffer` holds the bytes from the current piece on, which begins at `start`."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.buffer, self.start = file, b"", 0

    def shapes(self) -> Iterator[tuple[bytes, int, int]]:
        """Each bracket and comma outside of strings, and where in `buffer` it begins and ends. Raises DataError if a piece is
        too long."""
        scanned = 0
        while more := self.file.read(max(_CHUNK, len(self.buffer) - self.start)):
            self.buffer, scanned, self.start = self.buffer[self.start :] + more, scanned - self.start, 0
            for token in _TOKENS.finditer(self.buffer, scanned):
                if token.lastgroup == "open":
                    scanned = token.start()
                    break
                if token["shape"]:
                    yield token["shape"], token.start(), token.end()
            else:
                scanned = len(self.buffer)
            if len(self.buffer) - self.start > MAX_ROW_BYTES:
                raise DataError(f"a row of more than {MAX_ROW_BYTES >> 20} MiB: a quote or a bracket is not closed")

    def cut(self, end: int, following: int) -> bytes:
        """The current piece, which ends at `end`; the next one begins at `following`."""
        piece = self.buffer[self.start : end].strip()
        self.start = following
        return piece


def _check_end(shape: bytes, rest: bytes, file: BinaryIO) -> None:
    if shape != b"]":
        raise DataError("the array ends with a brace")
    while rest:
        if rest.strip():
            raise DataError("there is text after the array")
        rest = file.read(_CHUNK)
