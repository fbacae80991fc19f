"""Decoding of the bytes of a row, and the errors of rows and files."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any

from mm.contracts import Position
from mm.core.errors import DataError
from mm.runtime.text.messages import kind_of
from mm.runtime.text.strict_json import parse_json

PositionedRow = tuple[Position, Mapping[str, Any] | DataError]

BOM = codecs.BOM_UTF8
MAX_ROW_BYTES = 1 << 28  # a larger row means that a quote or bracket is not closed, and would fill the memory


def decode(data: bytes, position: Position) -> PositionedRow:
    """The position and the row's JSON object, or the DataError if it is not one."""
    try:
        row = parse_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return position, not_json(position, not_utf8(data, error))
    except ValueError as error:
        reason = f"{data.count(0)} NUL bytes: the file is incomplete" if b"\0" in data else str(error)
        return position, not_json(position, f"not JSON ({reason})")
    if not isinstance(row, dict):
        return position, DataError(
            f"expected a JSON object, got {kind_of(row) if row is not None else 'null'}",
            position.path, position.line, problem="wrong type",
        )  # fmt: skip
    return position, row


def not_json(position: Position, reason: str) -> DataError:
    """The error of a row that is not JSON."""
    return DataError(reason, position.path, position.line, problem="not JSON")


def not_text(position: Position, reason: str) -> DataError:
    """The error of a row of a table, or of a document, that is not what it should be."""
    return DataError(reason, position.path, position.line, problem="not text")


def damaged_file(path: str, reason: object, after: int) -> PositionedRow:
    """The error of a file whose rest cannot be read; `after` is the position of the last row that was read, 0 for none."""
    where = f" after row {after}" if after else ""
    error = DataError(f"cannot be read{where}: {reason}", path, problem="damaged file")
    return Position(path=path, line=after), error


def not_utf8(data: bytes, error: UnicodeError) -> str:
    """The reason for bytes that are no UTF-8, with a way to convert the file if they look like another encoding."""
    encoding = "UTF-16" if is_utf16(data) else "GB18030" if _is_gb18030(data) else ""
    cure = f": if the file has another encoding, convert it, for example with iconv -f {encoding} -t UTF-8" if encoding else ""
    where = f" ({error.reason} at byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
    return f"not UTF-8{where}{cure}"


def is_utf16(data: bytes) -> bool:
    """True if the bytes look like UTF-16."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or data.count(0) * 3 > len(data)


def _is_gb18030(data: bytes) -> bool:
    """True if the bytes are text in the encoding in which Excel saves a table where the language is Chinese."""
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return False
    return True
