"""The token cache: rows are encoded once, kept on disk, and read through memory maps ever after."""

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
from mm.runtime.data.bad_rows import SHOWN, BadRows
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

_VERSION = 2  # of the files' layout and of how core makes ids of rows: part of every key
# chunks that are encoded before other processes are started, which takes them about a second
_ALONE = 16
# chunks that are looked at beyond the first bad row, for further ones to name
_LOOK_ON = 16

# rows done, and how much of the source that is, 0 to 1, where it knows
Progress = Callable[[int, float | None], None]


def build_or_open(
    source: Source,
    formats: Sequence[FormatSpec],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    folder: Path,
    progress: Progress = lambda rows, fraction: None,
    waiting: Callable[[], None] = lambda: None,
    workers: int = 1,
    skip_bad_rows: bool = False,
) -> TokenStore:
    """The source's rows as `source.row_kind`, encoded by `workers` processes; from the cache in `folder` when it holds them.

    Bad rows are counted in the store's info with `skip_bad_rows`, and otherwise a DataError that names the first ones.
    Raises UsageError for a source without rows or of another kind. `waiting` is called when another process builds.
    """
    known = {spec.name: spec for spec in formats}
    job = _Job(source, RowReader(formats, source.row_kind), Encoder(tokenizer, max_length), progress, workers, skip_bad_rows)
    target = folder / job.key()
    info = _read(target, known)
    if info is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, target.name, waiting):
            info = _read(target, known) or job.build(target)
    if info.bad.count and not skip_bad_rows:
        raise job.complaint(info.bad)
    if not info.units:
        message = f"none of its {info.rows} rows gives anything to learn within {max_length} tokens."
        raise UsageError(f"{source.locator}: {message}")
    return TokenStore(target, info, cache(lambda name: known[name].load()()))


@attrs.frozen
class _Job:
    source: Source
    reader: RowReader
    encoder: Encoder
    progress: Progress
    workers: int
    skip_bad_rows: bool

    def key(self) -> str:
        position, raw, row = self._first()
        tokenizer, format = self.encoder.tokenizer, self.reader.format(position, raw)
        parts = {
            "version": _VERSION,
            "source": self.source.digest(),
            "kind": self.source.row_kind,
            "format": self.reader.spec(position, raw).name,
            # whoever edits a format or a row class must not be given what the old one made
            "code": [code_digest(type(part).__module__) for part in (format, row)],
            "tokenizer": tokenizer.fingerprint,
            "template": tokenizer.template_digest,
            "max_length": self.encoder.max_length,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def build(self, target: Path) -> StoreInfo:
        job = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        writer = StoreWriter(job, self.encoder.bytes_per_id)
        try:
            self._write(writer)
            writer.finish()
            shutil.rmtree(target, ignore_errors=True)  # what stands there is not whole, or it would have been opened
            os.replace(job, target)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MMError(f"The token cache {target.parent} has no room: {error.strerror}.") from None
        finally:
            writer.close()
            shutil.rmtree(job, ignore_errors=True)
        return writer.info

    def complaint(self, bad: BadRows) -> DataError:
        if self.skip_bad_rows:
            return bad.error(f"{self.source.locator}: none of its {bad.count:,} rows can be used.")
        where = self.source.locator
        return bad.error(
            f"mm data check {where} lists every such row, and its --fix writes the others to a new file; "
            "mm train --skip-bad-rows leaves them out."
        )

    def _first(self) -> tuple[Position, Mapping[str, Any], Row]:
        """The first row that can be used; it says what the key is made of."""
        bad = BadRows()
        for position, raw in stream(self.source, self.reader):
            try:
                if isinstance(raw, DataError):
                    raise raw
                return position, raw, self.reader.parse(position, raw)
            except DataError as error:
                bad.add(position.path, position.line, error)
            if bad.count == SHOWN and not self.skip_bad_rows:
                break
        if bad.count:
            raise self.complaint(bad)
        raise UsageError(f"{self.source.locator}: no rows.")

    def _write(self, writer: StoreWriter) -> None:
        info, last = writer.info, None
        with closing(self._chunks()) as chunks:
            for number, chunk in enumerate(chunks):
                writer.append(chunk)
                self.progress(info.rows, self.source.fraction())
                if info.bad.count and not self.skip_bad_rows:
                    last = number + _LOOK_ON if last is None else last
                    if info.bad.count >= SHOWN or number == last:
                        break
        if info.bad.count and not self.skip_bad_rows:
            raise self.complaint(info.bad)

    def _chunks(self) -> Generator[Chunk, None, None]:
        position, raw, _ = self._first()
        jobs = read_jobs(self.source, self.reader, self.reader.spec(position, raw))
        alone = None if self.workers == 1 else _ALONE
        yield from map(self.encoder.encode, islice(jobs, alone))
        for job in jobs:  # the first of those that are too many for one process
            with EncodingPool(self.encoder, self.workers) as pool:
                yield from pool.map(chain([job], jobs))


def _read(target: Path, known: Mapping[str, FormatSpec]) -> StoreInfo | None:
    """The info of a whole store that was made by formats as they are now."""
    info = read_info(target)
    if info is None or not known.keys() >= set(info.file_formats):
        return None
    for name in set(info.file_formats):
        known[name].load()
    same = all(module in sys.modules and code_digest(module) == digest for module, digest in info.code.items())
    return info if same else None


@contextmanager
def _locked(folder: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Of several processes that want the same store one builds and the others wait."""
    with in_turn(_lock(folder, name), waiting):
        _remove_leftovers(folder, name)
        yield


def _remove_leftovers(folder: Path, mine: str) -> None:
    """Remove what builds left behind that were killed: their locks are free, and that of `mine` is ours."""
    for unfinished in folder.glob(".*.*/"):
        name = unfinished.name.split(".")[1]
        with contextlib.ExitStack() as stack:
            if name == mine or try_lock(stack.enter_context(_lock(folder, name).open("w"))):
                shutil.rmtree(unfinished, ignore_errors=True)


def _lock(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock"
