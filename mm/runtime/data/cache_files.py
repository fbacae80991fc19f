"""The files of a token cache: appended chunk by chunk, read through memory maps.

- tokens.bin (uint16 or uint32): the ids of all sequences, end to end. learn.bin (bool): for each id True if it is a target.
- sequence_starts.bin: the token at which each sequence starts, plus the total at the end.
- unit_starts.bin: the first sequence of each unit, plus the total at the end.
- unit_rows.bin, files.bin, lines.bin, hashes.bin: for each unit the number of its row, of its file, its line, and a hash
  of the ids of its row.
- value-NAME.bin (float64): one value per unit.
- rows.jsonl: the JSON rows, for kinds of row that are kept; row_starts.bin: the byte at which each starts, plus the total.
- info.json: a `StoreInfo`, with the size and checksum of every file. Written last, so that it marks a complete store.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np

from mm.core.errors import MMError
from mm.runtime.data.bad_rows import MAX_NAMED, BadRows
from mm.runtime.data.row_keys import UnreadKeys

TOKENS, LEARN, ROWS, INFO = "tokens.bin", "learn.bin", "rows.jsonl", "info.json"
ARRAYS = {
    "sequence_starts": "<i8", "unit_starts": "<i8", "row_starts": "<i8",
    "unit_rows": "<i8", "files": "<i4", "lines": "<i8", "hashes": "<u8",
}  # fmt: skip
VALUE, VALUE_TYPE = "value-", "<f8"
_STARTS = ("sequence_starts", "unit_starts", "row_starts")
_COUNTS = (
    "rows", "units", "sequences", "tokens", "learned_tokens", "learned_bytes", "truncated", "dropped", "kept_bytes",
)  # fmt: skip
_BLOCK = 1 << 20


@attrs.define(kw_only=True)
class StoreInfo:
    """The contents of a store.

    `learned_tokens` counts the targets, and `learned_bytes` the UTF-8 bytes of their text. `truncated` and `dropped`
    count rows; `dropped_rows` has `file:line` of the first twenty dropped ones. `bad` are the rows that were skipped, `unread`
    the keys that nothing reads; `lost` counts rows by what the chat template has left out of them. `kept_bytes` is the size of
    rows.jsonl. `code` maps each module that parsed or encoded rows to a digest of its source, and `checks` each file to its
    [size, CRC-32].
    """

    row_kind: str = ""
    format: str = ""
    rows: int = 0
    units: int = 0
    sequences: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    learned_bytes: int = 0
    truncated: int = 0
    dropped: int = 0
    dropped_rows: list[str] = attrs.field(factory=list)
    files: list[str] = attrs.field(factory=list)
    file_formats: list[str] = attrs.field(factory=list)
    kept_bytes: int = 0
    bytes_per_id: int = 2
    bad: BadRows = attrs.field(factory=BadRows)
    lost: dict[str, int] = attrs.field(factory=dict)
    unread: UnreadKeys = attrs.field(factory=UnreadKeys)
    code: dict[str, str] = attrs.field(factory=dict)
    checks: dict[str, list[int]] = attrs.field(factory=dict)

    def add(self, later: StoreInfo) -> int:
        """Add the counts of the rows that follow. Returns the index that the first file of `later` has in `files`."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.row_kind, self.format = _join_names(self.row_kind, later.row_kind), _join_names(self.format, later.format)
        self.dropped_rows += later.dropped_rows[: MAX_NAMED - len(self.dropped_rows)]
        self.bad.update(later.bad)
        self.count_lost(later.lost)
        self.unread.update(later.unread)
        self.code |= later.code
        same_file = bool(self.files) and self.files[-1:] == later.files[:1]
        first = len(self.files) - same_file
        self.files += later.files[same_file:]
        self.file_formats += later.file_formats[same_file:]
        return first

    def count_lost(self, counts: Mapping[str, int]) -> None:
        """Add numbers of rows, by what the chat template has left out of them."""
        for name, count in counts.items():
            self.lost[name] = self.lost.get(name, 0) + count


def _join_names(names: str, more: str) -> str:
    return ", ".join(sorted({*names.split(", "), *more.split(", ")} - {""}))


@attrs.frozen
class Chunk:
    """Consecutive encoded rows. `blobs` holds the bytes for tokens.bin, learn.bin and rows.jsonl; `arrays` those of
    `ARRAYS` and `value-*`, with offsets and numbers that count from the start of the chunk."""

    info: StoreInfo
    blobs: dict[str, bytes]
    arrays: dict[str, np.ndarray]


class StoreWriter:
    """Writes a store into an empty folder, chunk by chunk, without keeping rows in memory. `finish` makes it readable."""

    def __init__(self, folder: Path, bytes_per_id: int) -> None:
        self.folder, self.info = folder, StoreInfo(bytes_per_id=bytes_per_id)
        self._files: dict[str, IO[bytes]] = {}
        for name in (TOKENS, LEARN, ROWS):
            self._write(name, b"")
        for name in ARRAYS:
            self._write(_file(name), np.zeros(int(name in _STARTS), dtype=ARRAYS[name]).tobytes())

    def append(self, chunk: Chunk) -> None:
        """Append the next rows."""
        info = self.info
        before = {"sequence_starts": info.tokens, "unit_starts": info.sequences, "row_starts": info.kept_bytes}
        before["unit_rows"] = info.rows
        before["files"] = info.add(chunk.info)  # after this call `info` includes the chunk
        for name, blob in chunk.blobs.items():
            self._write(name, blob)
        for name, values in chunk.arrays.items():
            shifted = values + before[name] if name in before else values
            self._write(_file(name), shifted.astype(ARRAYS.get(name, VALUE_TYPE), copy=False).tobytes())

    def finish(self) -> None:
        """Write info.json, which marks the store as complete. Nothing can be appended afterwards. Raises MMError if only
        some of the rows have a value."""
        self.close()
        for name, (size, _) in self.info.checks.items():
            if name.startswith(VALUE) and size != self.info.units * np.dtype(VALUE_TYPE).itemsize:
                raise MMError(f"only some rows have the value {name.removeprefix(VALUE).removesuffix('.bin')!r}")
        text = json.dumps(attrs.asdict(self.info), ensure_ascii=False)
        (self.folder / INFO).write_text(f"{zlib.crc32(text.encode())}\n{text}\n", encoding="utf-8")

    def close(self) -> None:
        """Close the files; the store is readable only if `finish` was called."""
        for file in self._files.values():
            file.close()

    def _write(self, name: str, data: bytes) -> None:
        if name not in self._files:
            self._files[name] = (self.folder / name).open("wb")
        size, checksum = self.info.checks.get(name, [0, 0])
        self._files[name].write(data)
        self.info.checks[name] = [size + len(data), zlib.crc32(data, checksum)]


def read_info(folder: Path) -> StoreInfo | None:
    """The info of the store in `folder`; None if it is missing, incomplete or damaged. Checks every byte of every file."""
    try:
        checksum, _, text = (folder / INFO).read_text(encoding="utf-8").rstrip("\n").partition("\n")
        if int(checksum) != zlib.crc32(text.encode()):
            return None
        values = json.loads(text)
        info = StoreInfo(**{**values, "bad": BadRows(**values["bad"]), "unread": UnreadKeys(**values["unread"])})
        same_sizes = all((folder / name).stat().st_size == size for name, (size, _) in info.checks.items())
        intact = same_sizes and all(_checksum(folder / name) == check for name, (_, check) in info.checks.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return info if intact else None


def read_array(folder: Path, name: str) -> np.ndarray:
    """The array of that name in `ARRAYS`, or of that value (`value-NAME`), as a memory map."""
    return read_map(folder / _file(name), np.dtype(ARRAYS.get(name, VALUE_TYPE)))


def read_map(path: Path, kind: np.dtype[Any]) -> np.ndarray:
    """The numbers of a file as a memory map: a plain array, since slicing a memmap object costs several times as much."""
    return np.asarray(np.memmap(path, dtype=kind, mode="r")) if path.stat().st_size else np.zeros(0, kind)


def _file(name: str) -> str:
    return f"{name}.bin"


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
