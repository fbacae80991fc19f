"""The source of a file of rows, or of all files below a folder."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from mm.contracts import Position, Source
from mm.core.errors import DataError, UsageError, close_match
from mm.plugins.sources.files import SUFFIXES
from mm.plugins.sources.files.arrays import is_array, read_array
from mm.plugins.sources.files.decode import PositionedRow, damaged_file
from mm.plugins.sources.files.lines import read_lines
from mm.plugins.sources.files.parquet import read_parquet

_BLOCK = 1 << 20
_MAX_NAMED = 5  # skipped files that a note names
_UNREADABLE = (OSError, EOFError, zlib.error)


class Files(Source):
    """`locator` is the path of a file or of a folder, whose files are read in the order of their names."""

    _finished_bytes = 0
    _tell: Callable[[], int] | None = None

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """Every row. Raises UsageError if the file does not exist or has an unknown suffix, and DataError at the first row
        that is not a JSON object."""
        for position, row in self.entries():
            if isinstance(row, DataError):
                raise row
            yield position, row

    def entries(self) -> Iterator[PositionedRow]:
        """See `Source.entries`; the files after a damaged one are still read."""
        self._finished_bytes = 0
        for path in self.paths:
            yield from self._read(path)
            self._finished_bytes, self._tell = self._finished_bytes + _size(path), None

    def fraction(self) -> float | None:
        """The fraction of the bytes on disk that was read: of a compressed file, its compressed bytes."""
        total = sum(map(_size, self.paths))
        return min(1.0, (self._finished_bytes + (self._tell() if self._tell else 0)) / total) if total else None

    def digest(self) -> str:
        """SHA-256 of the uncompressed content, so that compressing a file does not change it. For several files, the SHA-256
        of their digests in their order."""
        digests = [self._digest(path) for path in self.paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def notes(self) -> Sequence[str]:
        """The files of a folder that are skipped because of their suffix."""
        if not self._skipped:
            return ()
        more = len(self._skipped) - _MAX_NAMED
        names = ", ".join(self._skipped[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        return (f"{self.locator}: skipped, as rows are read from {' '.join(SUFFIXES)} files: {names}",)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of the files, as messages name them. Raises UsageError if there are none."""
        path = Path(self.locator).expanduser()
        if path.is_dir():
            names = [name for name in self._names(path) if name.endswith(SUFFIXES)]
            if not names:
                raise UsageError(f"{self.locator} is a folder without {' '.join(SUFFIXES)} files.")
            return tuple(os.path.join(self.locator, name) for name in names)
        if not path.is_file():
            nearby = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UsageError(f"{self.locator} does not exist.{close_match(path.name, nearby)}")
        if not path.name.endswith(SUFFIXES):
            hint = ' Write plain text as lines of {"text": "..."} in a .jsonl file.' if path.suffix == ".txt" else ""
            raise UsageError(f"{self.locator}: rows are read from {' '.join(SUFFIXES)} files, and folders of them.{hint}")
        return (self.locator,)

    @cached_property
    def _skipped(self) -> list[str]:
        path = Path(self.locator).expanduser()
        return [name for name in self._names(path) if not name.endswith(SUFFIXES)] if path.is_dir() else []

    @staticmethod
    def _names(folder: Path) -> list[str]:
        """The paths of all files below a folder, relative to it and sorted; hidden files and folders are skipped."""
        paths = []
        for base, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths += [os.path.relpath(os.path.join(base, name), folder) for name in names if not name.startswith(".")]
        return sorted(paths)

    def _read(self, path: str) -> Iterator[PositionedRow]:
        number = 0
        try:
            for position, row in self._read_parquet(path) if path.endswith(".parquet") else self._read_json(path):
                number = position.line
                yield position, row
        except _UNREADABLE as error:
            yield damaged_file(path, error, number)

    def _read_parquet(self, path: str) -> Iterator[PositionedRow]:
        fraction = [0.0]
        self._tell = lambda: int(fraction[0] * _size(path))
        for position, row, fraction[0] in read_parquet(path):
            yield position, row

    def _read_json(self, path: str) -> Iterator[PositionedRow]:
        with Path(path).expanduser().open("rb") as raw:
            self._tell = lambda: 0 if raw.closed else raw.tell()
            with _uncompressed(path, raw) as file:
                # a .json file that starts with an object has JSON lines
                array = ".json" in Path(path).suffixes[-2:] and is_array(file)
                yield from read_array(path, file) if array else read_lines(path, file)

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        try:
            with Path(path).expanduser().open("rb") as raw, _uncompressed(path, raw) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except _UNREADABLE as error:
            raise DataError(f"cannot be read ({error})", path, problem="damaged file") from error
        return digest.hexdigest()


def _uncompressed(path: str, raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.open(raw, "rb")) if path.endswith(".gz") else raw


def _size(path: str) -> int:
    return Path(path).expanduser().stat().st_size
