"""Reading of tables with named columns: comma-separated (.csv) and tab-separated (.tsv) values."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO

from mm.contracts import Position
from mm.core.errors import DataError
from mm.plugins.sources.files.decode import BOM, MAX_ROW_BYTES, PositionedRow, damaged_file, not_text, not_utf8
from mm.runtime.text.wording import count_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(shown: str, file: BinaryIO, delimiter: str) -> Iterator[PositionedRow]:
    """Each row with its cells under the names of the header, or its error; positions are the lines on which rows start.

    A cell may be in double quotes, and then contain delimiters, line breaks, and quotes written twice. An empty cell is a
    missing field. Rows without a cell are skipped.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(_lines(file), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        position = Position(path=shown, line=reader.line_num + 1)
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if header is None:
                header = _header(cells) if any(cells) else None
            elif any(cells):
                yield position, _row(header, cells, position)
        except csv.Error as error:
            if header is None or "field limit" in str(error) or "end of data" in str(error):
                yield damaged_file(shown, f"line {position.line}: a quote is not closed ({error})", number)
                return
            yield position, not_text(position, f"the quotes of the row are not those of a table ({error})")
        except DataError as error:
            yield damaged_file(shown, error.reason, number)
            return
        number = position.line


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines with their ends; bytes that are not UTF-8 become halves of surrogate pairs. Raises DataError."""
    for number, line in enumerate(iter(partial(file.readline, MAX_ROW_BYTES), b"")):
        if len(line) == MAX_ROW_BYTES:
            raise DataError(f"a line of more than {MAX_ROW_BYTES >> 20} MiB")
        yield (line if number else line.removeprefix(BOM)).decode("utf-8", "surrogateescape")


def _header(cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if fault := _fault(names):
        raise DataError(f"the header is {fault}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"the header names the column {twice[0][:40]!r} twice")
    return names


def _row(header: Sequence[str], cells: Sequence[str], position: Position) -> dict[str, str] | DataError:
    if len(cells) < len(header) or any(cells[len(header) :]):
        reason = f"the row has {count_text(len(cells), 'cell')}, but the header has {len(header)}"
        return DataError(reason, position.path, position.line, problem="columns")
    if fault := _fault(cells):
        return not_text(position, fault)
    return {name: cell for name, cell in zip(header, cells, strict=False) if cell}


def _fault(cells: Sequence[str]) -> str:
    """The reason if the bytes of the cells are not UTF-8; "" if they are."""
    data = ",".join(cells).encode("utf-8", "surrogateescape")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return not_utf8(data, error)
    return ""
