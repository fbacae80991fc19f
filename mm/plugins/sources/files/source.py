"""Reads a file of JSON lines."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from mm.core.contracts import Position, Source
from mm.core.errors import DataError, UsageError, close_match
from mm.plugins.sources.files import SUFFIXES

_BLOCK = 1 << 20


class Files(Source):
    """One file; `locator` is its path. Blank lines are skipped, but counted."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """Every row. Raises UsageError for a missing file or an unknown suffix, DataError for a line that is no object."""
        with self._open() as file:
            for number, line in enumerate(self._lines(file), 1):
                if line.strip():
                    yield Position(path=self.locator, line=number), self._row(line, number)

    def digest(self) -> str:
        """SHA-256 of the uncompressed content, so that compressing a file does not make it another."""
        found = hashlib.sha256()
        with self._open() as file:
            while block := self._read(file):
                found.update(block)
        return found.hexdigest()

    def _open(self) -> BinaryIO:
        path = Path(self.locator).expanduser()
        if not path.is_file():
            nearby = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            what = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise UsageError(f"{self.locator} {what}.{close_match(path.name, nearby)}")
        if not path.name.endswith(SUFFIXES):
            raise UsageError(f"{self.locator}: rows are read from {' and '.join(SUFFIXES)} files.")
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            yield from file
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be read ({error})", self.locator) from error

    def _read(self, file: BinaryIO) -> bytes:
        try:
            return file.read(_BLOCK)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be read ({error})", self.locator) from error

    def _row(self, line: bytes, number: int) -> Mapping[str, Any]:
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 ({error.reason} at byte {error.start})", self.locator, number) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON ({error})", self.locator, number) from None
        if not isinstance(row, dict):
            raise DataError(f"expected a JSON object, got {type(row).__name__}", self.locator, number)
        return row
