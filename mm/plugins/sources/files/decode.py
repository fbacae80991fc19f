"""From the bytes of a row to the row."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any

from mm.contracts import Position
from mm.core.errors import DataError
from mm.runtime.text.messages import kind_of
from mm.runtime.text.strict_json import parse_json

Found = tuple[Position, Mapping[str, Any] | DataError]

BOM = codecs.BOM_UTF8
LONGEST = 1 << 28  # bytes of a row: beyond, a quote or bracket was not closed, and memory would fill


def decode(data: bytes, position: Position) -> Found:
    """The row's JSON object, or the DataError that says why it is none."""
    try:
        row = parse_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return position, bad(position, f"not UTF-8 ({error.reason} at byte {error.start}{_hint(data)})")
    except ValueError as error:
        reason = f"{data.count(0)} NUL bytes: the file was not written whole" if b"\0" in data else str(error)
        return position, bad(position, f"not JSON ({reason})")
    if not isinstance(row, dict):
        return position, DataError(
            f"expected a JSON object, got {kind_of(row) if row is not None else 'null'}",
            position.path, position.line, problem="wrong type",
        )  # fmt: skip
    return position, row


def bad(position: Position, reason: str) -> DataError:
    """What is no JSON at all."""
    return DataError(reason, position.path, position.line, problem="not JSON")


def damaged(path: str, reason: object, after: int) -> Found:
    """The file cannot be read on; `after` rows were."""
    error = DataError(f"cannot be read after row {after} ({reason})", path, problem="damaged file")
    return Position(path=path, line=after), error


def _hint(data: bytes) -> str:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or data.count(0) * 3 > len(data)
    return "; it looks like UTF-16" if utf16 else ""
