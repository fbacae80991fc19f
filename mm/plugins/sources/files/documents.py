"""Reading of plain text: a file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from mm.contracts import Position
from mm.plugins.sources.files.decode import BOM, MAX_ROW_BYTES, PositionedRow, damaged_file, is_utf16, not_text, not_utf8


def read_document(shown: str, file: BinaryIO) -> Iterator[PositionedRow]:
    """One row with the whole text, or its error. Windows' line breaks become those of Unix; a byte order mark is removed."""
    data = file.read(MAX_ROW_BYTES + 1)
    position = Position(path=shown, line=1)
    if len(data) > MAX_ROW_BYTES:
        yield damaged_file(shown, f"a document of more than {MAX_ROW_BYTES >> 20} MiB: cut it into several files", 0)
        return
    try:
        if is_utf16(data):
            raise UnicodeError
        text = data.removeprefix(BOM).decode("utf-8").replace("\r\n", "\n")
    except UnicodeError as error:
        yield position, not_text(position, not_utf8(data, error))
        return
    del data  # not held while the row is used: a document may be large
    yield position, {"text": text}
