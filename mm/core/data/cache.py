"""The token cache: rows are encoded once, kept on disk, and read through memory maps ever after."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.contracts import Position, Source
from mm.core.data.cache_files import StoreInfo, StoreWriter, read_info
from mm.core.data.reader import RowReader, at
from mm.core.data.rows import Encoded
from mm.core.data.store import ConcatStore, Store, TokenStore
from mm.core.errors import DataError, UsageError
from mm.core.records import FormatSpec

if TYPE_CHECKING:
    from mm.core.data.tokenizer import Tokenizer

__all__ = ["ConcatStore", "Store", "StoreInfo", "TokenStore", "build_or_open"]

_VERSION = 1  # of the files' layout and of how core makes ids of rows: part of every key
_PROGRESS_EVERY = 256

Progress = Callable[[int], None]


def build_or_open(
    source: Source,
    formats: Sequence[FormatSpec],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    folder: Path,
    progress: Progress | None = None,
) -> TokenStore:
    """The source's rows as `source.row_kind`, encoded; from the cache in `folder` when it holds them.

    `progress` is called with the number of rows done. Raises DataError at the first bad row, UsageError for a source
    without rows or of another kind.
    """
    job = _Job(source, RowReader(formats, source.row_kind), tokenizer, max_length, progress or (lambda done: None))
    position, raw = _first(source)
    target = folder / job.key(position, raw)
    info = read_info(target)
    if info is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{target.name}.lock"):
            info = read_info(target) or job.build(target)
    if not info.units:
        message = f"none of its {info.rows} rows gives anything to learn within {max_length} tokens."
        raise UsageError(f"{source.locator}: {message}")
    return TokenStore(target, info, job.reader.format(position, raw))


def _first(source: Source) -> tuple[Position, Mapping[str, Any]]:
    for position, row in source.rows():
        return position, row
    raise UsageError(f"{source.locator}: no rows.")


@attrs.frozen
class _Job:
    source: Source
    reader: RowReader
    tokenizer: Tokenizer
    max_length: int
    progress: Progress

    def key(self, position: Position, raw: Mapping[str, Any]) -> str:
        row, format = self.reader.parse(position, raw), self.reader.format(position, raw)
        parts = {
            "version": _VERSION,
            "source": self.source.digest(),
            "kind": self.source.row_kind,
            "format": self.reader.spec(position, raw).name,
            # whoever edits a format or a row class must not be given what the old one made
            "code": [_code_digest(type(part)) for part in (format, row)],
            "tokenizer": self.tokenizer.fingerprint,
            "template": self.tokenizer.template_digest,
            "max_length": self.max_length,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def build(self, target: Path) -> StoreInfo:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        writer = StoreWriter(work, self.tokenizer.token_bytes)
        try:
            self._write(writer)
            shutil.rmtree(target, ignore_errors=True)  # what stands there is not whole, or it would have been opened
            os.replace(work, target)
        finally:
            writer.close()
            shutil.rmtree(work, ignore_errors=True)
        return writer.info

    def _write(self, writer: StoreWriter) -> None:
        for position, raw in self.source.rows():
            row = self.reader.parse(position, raw)
            writer.info.row_kind, writer.info.format = row.kind, self.reader.spec(position, raw).name
            writer.add(position, self._encoded(position, row), raw if getattr(row, "keep", False) else None)
            if writer.info.rows % _PROGRESS_EVERY == 0:
                self.progress(writer.info.rows)
        self.progress(writer.info.rows)
        writer.finish()

    def _encoded(self, position: Position, row: Any) -> Encoded:
        try:
            encoded: Encoded = row.encode(self.tokenizer, self.max_length)
        except DataError as error:
            raise at(position, error) from None
        return encoded


def _code_digest(kind: type) -> str:
    return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # of several processes that want the same store one builds and the others wait; the kernel frees a dead one's lock
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
