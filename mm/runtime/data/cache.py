"""The token cache: rows are encoded once, stored on disk, and from then on read through memory maps."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import DataError, MMError, UsageError
from mm.core.locks import in_turn, try_lock
from mm.core.records import FormatSpec
from mm.runtime.data.bad_rows import MAX_SHOWN, BadRows
from mm.runtime.data.cache_files import Chunk, StoreInfo, StoreWriter, read_info
from mm.runtime.data.encoding import Encoder, code_digest
from mm.runtime.data.encoding_jobs import read_jobs, stream
from mm.runtime.data.encoding_pool import EncodingPool
from mm.runtime.data.reader import RowReader
from mm.runtime.data.source import Position, Source
from mm.runtime.data.store import ConcatStore, Store, TokenStore
from mm.runtime.text.rows import Row

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer

__all__ = ["ConcatStore", "Store", "StoreInfo", "TokenStore", "build_or_open"]

# version of the file layout and of how rows become ids; part of every key
_VERSION = 3
# chunks encoded in this process before worker processes are started: starting takes about a second
_SERIAL_CHUNKS = 16
# chunks still encoded after the first bad row, so that the error can list further ones
_CHUNKS_AFTER_BAD_ROW = 16

# called with the number of rows encoded and, if the source knows it, the fraction of the source that was read (0 to 1)
Progress = Callable[[int, float | None], None]


def build_or_open(
    source: Source,
    formats: Sequence[FormatSpec],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    folder: Path,
    progress: Progress = lambda rows, fraction: None,
    on_wait: Callable[[], None] = lambda: None,
    workers: int = 1,
    skip_bad_rows: bool = False,
) -> TokenStore:
    """The source's rows as `source.row_kind`: opened from the cache in `folder`, or encoded into it by `workers` processes.

    With `skip_bad_rows` the bad rows are skipped and counted in the store's info. Otherwise they raise a DataError that
    lists the first ones. Raises UsageError if the source has no rows, rows of another kind only, or none with a token to
    learn. `on_wait` is called before waiting for another process that is encoding the same rows.
    """
    known = {spec.name: spec for spec in formats}
    build = _Build(source, RowReader(formats, source.row_kind), Encoder(tokenizer, max_length), progress, workers, skip_bad_rows)
    target = folder / build.key()
    info = _read_current(target, known)
    if info is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _build_lock(folder, target.name, on_wait):
            info = _read_current(target, known) or build.run(target)
    if info.bad.count and not skip_bad_rows:
        raise build.bad_rows_error(info.bad)
    if not info.units:
        raise UsageError(
            f"{source.locator}: none of its {info.rows} rows has a token to learn within {max_length} tokens (--max-length)."
        )
    return TokenStore(target, info, cache(lambda name: known[name].load()()))


@attrs.frozen
class _Build:
    """The encoding of one source into a folder of the cache."""

    source: Source
    reader: RowReader
    encoder: Encoder
    progress: Progress
    workers: int
    skip_bad_rows: bool

    def key(self) -> str:
        """The name of the folder: a hash of everything that decides the ids."""
        position, raw, row = self._first_usable()
        tokenizer, format = self.encoder.tokenizer, self.reader.format(position, raw)
        parts = {
            "version": _VERSION,
            "source": self.source.digest(),
            # the digest should depend on them; one that does not would give the tokens of other options in silence
            "options": repr(self.source.config),
            "kind": self.source.row_kind,
            "format": self.reader.spec(position, raw).name,
            # after an edit of the format or of the row class, the rows must be encoded again
            "code": [code_digest(type(part).__module__) for part in (format, row)],
            "tokenizer": tokenizer.fingerprint,
            "template": tokenizer.template_digest,
            "max_length": self.encoder.max_length,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def run(self, target: Path) -> StoreInfo:
        """Encode all rows into a temporary folder, then rename it to `target`. Raises MMError if the disk is full."""
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        writer = StoreWriter(unfinished, self.encoder.bytes_per_id)
        try:
            self._write(writer)
            writer.finish()
            shutil.rmtree(target, ignore_errors=True)  # if there is a store, it is damaged or out of date
            os.replace(unfinished, target)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MMError(f"The token cache {target.parent} has no room: {error.strerror}. Free some space there.") from None
        finally:
            writer.close()
            shutil.rmtree(unfinished, ignore_errors=True)
        return writer.info

    def bad_rows_error(self, bad: BadRows) -> DataError:
        """The error that lists the first bad rows and says how to find, remove or skip them all."""
        if self.skip_bad_rows:
            return bad.error(f"{self.source.locator}: none of its {bad.count:,} rows can be used.")
        where = self.source.locator
        return bad.error(
            f"mm data check {where} lists every bad row, and its --fix writes the good ones to a new file; "
            "mm train --skip-bad-rows skips the bad ones."
        )

    def _first_usable(self) -> tuple[Position, Mapping[str, Any], Row]:
        """The first usable row: its format and row class go into the key."""
        bad = BadRows()
        for position, raw in stream(self.source, self.reader):
            try:
                if isinstance(raw, DataError):
                    raise raw
                return position, raw, self.reader.parse(position, raw)
            except DataError as error:
                bad.add(position.path, position.line, error)
            if bad.count == MAX_SHOWN and not self.skip_bad_rows:
                break
        if bad.count:
            raise self.bad_rows_error(bad)
        raise UsageError(f"{self.source.locator}: the source has no rows.")

    def _write(self, writer: StoreWriter) -> None:
        info, last = writer.info, None
        with closing(self._chunks()) as chunks:
            for number, chunk in enumerate(chunks):
                writer.append(chunk)
                self.progress(info.rows, self.source.fraction())
                if info.bad.count and not self.skip_bad_rows:
                    last = number + _CHUNKS_AFTER_BAD_ROW if last is None else last
                    if info.bad.count >= MAX_SHOWN or number == last:
                        break
        if info.bad.count and not self.skip_bad_rows:
            raise self.bad_rows_error(info.bad)

    def _chunks(self) -> Generator[Chunk, None, None]:
        position, raw, _ = self._first_usable()
        jobs = read_jobs(self.source, self.reader, self.reader.spec(position, raw))
        serial = None if self.workers == 1 else _SERIAL_CHUNKS
        yield from map(self.encoder.encode, islice(jobs, serial))
        for job in jobs:  # if any are left, this is the first of them, and the pool encodes them all
            with EncodingPool(self.encoder, self.workers) as pool:
                yield from pool.map(chain([job], jobs))


def _read_current(target: Path, known: Mapping[str, FormatSpec]) -> StoreInfo | None:
    """The info of a complete store that was encoded by the present code of its formats; None for any other store."""
    info = read_info(target)
    if info is None or not known.keys() >= set(info.file_formats):
        return None
    for name in set(info.file_formats):
        known[name].load()
    same = all(module in sys.modules and code_digest(module) == digest for module, digest in info.code.items())
    return info if same else None


@contextmanager
def _build_lock(folder: Path, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of one store: of several processes that need it, one builds and the others wait."""
    with in_turn(_lock_path(folder, name), on_wait):
        _remove_leftovers(folder, name)
        yield


def _remove_leftovers(folder: Path, mine: str) -> None:
    """Remove the temporary folders of killed builds: their locks are free. The lock of `mine` is held by this process."""
    for unfinished in folder.glob(".*.*/"):
        name = unfinished.name.split(".")[1]
        with contextlib.ExitStack() as stack:
            if name == mine or try_lock(stack.enter_context(_lock_path(folder, name).open("w"))):
                shutil.rmtree(unfinished, ignore_errors=True)


def _lock_path(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock"
