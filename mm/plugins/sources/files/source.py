"""The source of a file of rows, or of all files below a folder."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, BinaryIO, cast

from mm.contracts import Position, Source
from mm.core.errors import DataError
from mm.plugins.sources.files import DOCUMENTS, suffix_of
from mm.plugins.sources.files.arrays import read_pieces, split_of
from mm.plugins.sources.files.decode import PositionedRow, damaged_file
from mm.plugins.sources.files.documents import read_document
from mm.plugins.sources.files.lines import read_lines
from mm.plugins.sources.files.parquet import read_parquet
from mm.plugins.sources.files.paths import DataFile, DataFiles, find_files
from mm.plugins.sources.files.tables import DELIMITERS, read_table

_BLOCK = 1 << 20
_UNREADABLE = (OSError, EOFError, zlib.error)


class Files(Source):
    """`locator` is the path of a file or of a folder, whose files are read in the order of their names."""

    _finished_bytes = 0
    _tell: Callable[[], int] | None = None

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """Every row. Raises UsageError if the file does not exist or has an unknown suffix, and DataError at the first row
        that cannot be read."""
        for position, row in self.entries():
            if isinstance(row, DataError):
                raise row
            yield position, row

    def entries(self) -> Iterator[PositionedRow]:
        """See `Source.entries`; the files after a damaged one are still read."""
        self._finished_bytes = 0
        for file in self._found.files:
            yield from self._read(file)
            self._finished_bytes, self._tell = self._finished_bytes + file.size, None

    def fraction(self) -> float | None:
        """The fraction of the bytes on disk that was read: of a compressed file, its compressed bytes."""
        total = sum(file.size for file in self._found.files)
        return min(1.0, (self._finished_bytes + (self._tell() if self._tell else 0)) / total) if total else None

    def digest(self) -> str:
        """SHA-256 of the uncompressed content, so that compressing a file does not change it. For several files, the SHA-256
        of their digests in their order."""
        digests = [_digest(file) for file in self._found.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def notes(self) -> Sequence[str]:
        """The files of a folder that are skipped."""
        return self._found.notes

    @cached_property
    def _found(self) -> DataFiles:
        return find_files(self.locator, self.row_kind)

    def _read(self, file: DataFile) -> Iterator[PositionedRow]:
        number = 0
        try:
            if fault := file.fault:
                yield Position(path=file.shown, line=0), DataError(fault, file.shown, problem="damaged file")
                return
            for position, row in self._read_parquet(file) if suffix_of(file.path) == ".parquet" else self._read_text(file):
                number = position.line
                yield position, row
        except _UNREADABLE as error:
            yield damaged_file(file.shown, error, number)

    def _read_parquet(self, file: DataFile) -> Iterator[PositionedRow]:
        fraction = [0.0]
        self._tell = lambda: int(fraction[0] * file.size)
        for position, row, fraction[0] in read_parquet(file.shown, file.path):
            yield position, row

    def _read_text(self, file: DataFile) -> Iterator[PositionedRow]:
        suffix = suffix_of(file.path)
        with open(file.path, "rb") as raw:
            self._tell = lambda: 0 if raw.closed else raw.tell()
            with _uncompressed(file, raw) as content:
                if suffix in DOCUMENTS:
                    yield from read_document(file.shown, content)
                elif suffix in DELIMITERS:
                    yield from read_table(file.shown, content, DELIMITERS[suffix])
                elif split := split_of(content) if suffix == ".json" else None:
                    yield from read_pieces(file.shown, content, split)
                else:
                    yield from read_lines(file.shown, content)


def _digest(file: DataFile) -> str:
    digest = hashlib.sha256()
    if fault := file.fault:
        raise DataError(fault, file.shown, problem="damaged file")
    try:
        with open(file.path, "rb") as raw, _uncompressed(file, raw) as content:
            while block := content.read(_BLOCK):
                digest.update(block)
    except _UNREADABLE as error:
        raise DataError(f"cannot be read ({error})", file.shown, problem="damaged file") from error
    return digest.hexdigest()


def _uncompressed(file: DataFile, raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.open(raw, "rb")) if file.path.lower().endswith(".gz") else raw
