"""The encoding of JSON rows to chunks of a token cache: the same code in one process and in several."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mm.core.discovery import import_plugin
from mm.core.errors import DataError, MMError
from mm.runtime.data.cache_files import ARRAYS, LEARN, ROWS, TOKENS, VALUE, VALUE_TYPE, Chunk, StoreInfo
from mm.runtime.data.row_keys import parse_row
from mm.runtime.data.source import Format
from mm.runtime.text.rows import Encoded

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer


@attrs.frozen
class EncodingJob:
    """Rows to encode: (path, line, JSON row), with an error in place of a row that could not be read. `format` is the name
    of their format, `target` its "module:attr", and `file` the path of that module."""

    format: str
    target: str
    file: str
    rows: list[tuple[str, int, Mapping[str, Any] | DataError]]


def make_job(format: str, target: str, rows: list[tuple[str, int, Mapping[str, Any] | DataError]]) -> EncodingJob:
    """The job of encoding `rows`, for any process on this machine; the module of `target` must be loaded."""
    module = sys.modules[target.partition(":")[0]]
    return EncodingJob(format, target, getattr(module, "__file__", None) or "", rows)


@attrs.frozen
class Encoder:
    """Encodes jobs to chunks. A worker process receives it once, before its first job."""

    tokenizer: Tokenizer
    max_length: int
    # per encoder, since between two builds a plugin's file may be edited and loaded again
    _formats: dict[str, Format] = attrs.field(factory=dict, init=False)
    _digests: dict[str, str] = attrs.field(factory=dict, init=False)

    @property
    def bytes_per_id(self) -> int:
        """2 if every id fits into 16 bits, else 4."""
        return 2 if len(self.tokenizer.token_bytes) <= 1 << 16 else 4

    def encode(self, job: EncodingJob) -> Chunk:
        """The rows as a chunk; its `info.bad` counts those that cannot be used."""
        if job.target not in self._formats:
            self._formats[job.target] = _load_format(job)
        format = self._formats[job.target]
        builder = ChunkBuilder(self.tokenizer.token_bytes, self.bytes_per_id)
        builder.info.format = job.format
        for path, line, raw in job.rows:
            try:
                self._encode(format, path, line, raw, builder)
            except DataError as error:
                builder.info.bad.add(path, line, error)
            except MMError:
                raise
            except Exception as error:
                error.add_note(f"while encoding {path}:{line}")
                raise
        return builder.chunk()

    def _encode(self, format: Format, path: str, line: int, raw: Mapping[str, Any] | DataError, builder: ChunkBuilder) -> None:
        if isinstance(raw, DataError):
            raise raw
        row = parse_row(format, raw)
        self.tokenizer.lost.clear()
        encoded = row.encode(self.tokenizer, self.max_length)
        builder.info.count_lost(dict.fromkeys(self.tokenizer.lost, 1))  # rows are counted, not texts
        # after an edit of the format or of the row class, the rows must be encoded again
        for kind in (type(format), type(row)):
            if kind.__module__ not in self._digests:
                self._digests[kind.__module__] = code_digest(kind.__module__)
            builder.info.code[kind.__module__] = self._digests[kind.__module__]
        builder.info.row_kind = row.kind
        builder.info.unread.add(path, format, raw, row)
        builder.add(path, line, encoded, raw if getattr(row, "keep", False) else None)


class ChunkBuilder:
    """Collects encoded rows into a chunk. `token_bytes` (vocab_size,) int32: the number of bytes of each id's text."""

    def __init__(self, token_bytes: np.ndarray, bytes_per_id: int) -> None:
        self.info = StoreInfo(bytes_per_id=bytes_per_id)
        self._token_bytes = token_bytes
        self._ids, self._learn, self._rows = array("I"), bytearray(), bytearray()
        self._arrays = {name: array("q") for name in ARRAYS if name != "hashes"}
        self._values: dict[str, array[float]] = {}
        self._ends: list[tuple[int, int]] = []  # for each row: the number of sequences up to its end, and its units

    def add(self, path: str, line: int, encoded: Encoded, raw: Mapping[str, Any] | None) -> None:
        """Add the units of one row; `raw` is the JSON row if it must be kept."""
        info, arrays = self.info, self._arrays
        info.truncated += encoded.truncated
        if not encoded.units:
            info.dropped += 1
            info.dropped_rows.append(f"{path}:{line}")
        for unit in encoded.units:
            for ids, learn in unit:
                self._add_sequence(ids, learn)
            arrays["unit_starts"].append(info.sequences)
        self._add_units(path, line, encoded)
        if raw is not None:
            self._rows += json.dumps(raw, ensure_ascii=False).encode() + b"\n"
            info.kept_bytes = len(self._rows)
            arrays["row_starts"].append(info.kept_bytes)
        info.rows += 1

    def chunk(self) -> Chunk:
        """The chunk of all rows added."""
        info, ids = self.info, np.frombuffer(self._ids or b"", dtype=np.uint32)
        arrays = {name: np.array(values, dtype=ARRAYS[name]) for name, values in self._arrays.items()}
        targets = np.frombuffer(self._learn, dtype=np.bool_).copy()
        targets[np.concatenate([[0], arrays["sequence_starts"][:-1]])[: len(ids)]] = False  # nothing predicts a first token
        info.learned_tokens = int(targets.sum())
        info.learned_bytes = int(self._token_bytes[ids].sum(where=targets))
        tokens = ids.astype(f"u{info.bytes_per_id}").tobytes()
        arrays["hashes"] = self._hashes(tokens)
        arrays |= {VALUE + name: np.array(values, dtype=VALUE_TYPE) for name, values in self._values.items()}
        return Chunk(info, {TOKENS: tokens, LEARN: bytes(self._learn), ROWS: bytes(self._rows)}, arrays)

    def _add_sequence(self, ids: list[int], learn: list[bool]) -> None:
        if not len(ids) or len(ids) != len(learn):
            raise MMError(f"a row has a sequence of {len(ids)} ids and {len(learn)} learn flags")
        if min(ids) < 0 or max(ids) >= len(self._token_bytes):
            raise MMError(f"a row has ids outside the vocabulary of {len(self._token_bytes)}")
        self._ids.extend(ids)
        self._learn += np.array(learn, dtype=np.bool_).tobytes()
        self.info.sequences += 1
        self.info.tokens = len(self._ids)
        self._arrays["sequence_starts"].append(self.info.tokens)

    def _add_units(self, path: str, line: int, encoded: Encoded) -> None:
        info, units = self.info, len(encoded.units)
        if info.files[-1:] != [path]:
            info.files.append(path)
            info.file_formats.append(info.format)
        for name, value in (("unit_rows", info.rows), ("files", len(info.files) - 1), ("lines", line)):
            self._arrays[name].extend([value] * units)
        for values in encoded.values:
            for name, number in values.items():
                self._values.setdefault(name, array("d")).append(float(number))
        info.units += units
        self._ends.append((info.sequences, units))

    def _hashes(self, tokens: bytes) -> np.ndarray:
        """(units,) uint64: for each unit a hash of the ids of its row."""
        ends = [end * self.info.bytes_per_id for end in (0, *self._arrays["sequence_starts"])]
        hashes, first = array("Q"), 0
        for last, units in self._ends:
            content = hashlib.blake2b(digest_size=8)
            for sequence in range(first, last):
                content.update(tokens[ends[sequence] : ends[sequence + 1]] + b"|")
            hashes.extend([int.from_bytes(content.digest(), "little")] * units)
            first = last
        return np.array(hashes, dtype=ARRAYS["hashes"])


def code_digest(module: str) -> str:
    """A hash of the source of a loaded module and of those modules of the same package whose classes and functions it
    uses, directly or through others."""
    package, pending, sources = module.partition(".")[0], [module], dict[str, bytes]()
    while pending:
        name = pending.pop()
        if name in sources or name not in sys.modules or name.partition(".")[0] != package:
            continue
        sources[name] = Path(inspect.getfile(sys.modules[name])).read_bytes()
        used = [v for v in vars(sys.modules[name]).values() if inspect.isclass(v) or inspect.isfunction(v)]
        pending += [v.__module__ for v in used]
    return hashlib.sha256(b"".join(sources[name] for name in sorted(sources))).hexdigest()


def _load_format(job: EncodingJob) -> Format:
    name, _, attribute = job.target.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        if not job.file:
            raise
        module = import_plugin(job.file)  # a plugin given by its path, with -p
    format: Format = getattr(module, attribute)()
    return format
