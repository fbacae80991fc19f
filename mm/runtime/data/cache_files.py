"""The files of a token cache: appended chunk by chunk, read through memory maps.

tokens.bin (uint16 or uint32) and learn.bin (bool) hold all sequences end to end. One file each, named as in `ARRAYS`, says
where each sequence begins and, for each unit, its first sequence, its row, file and line, a hash of its row's content;
value-NAME.bin are its values. A file of beginnings has one more number at its end. rows.jsonl holds the JSON rows, for
kinds of row that want them kept. info.json is written last and says how long each file is, with its checksum.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np

from mm.core.errors import MMError
from mm.runtime.data.bad_rows import NAMED, BadRows

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
    """What is in a store. `learned_tokens` are the targets, `learned_bytes` the UTF-8 bytes that they stand for,
    `truncated` and `dropped` count rows, of which the first twenty dropped are named; `bad` rows were skipped.

    `code` has a digest for each module that read the rows, `checks` the size and CRC-32 of each file.
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
    code: dict[str, str] = attrs.field(factory=dict)
    checks: dict[str, list[int]] = attrs.field(factory=dict)

    def add(self, later: StoreInfo) -> int:
        """Count what comes after; answers the number that the later one's first file has here."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.row_kind, self.format = _both(self.row_kind, later.row_kind), _both(self.format, later.format)
        self.dropped_rows += later.dropped_rows[: NAMED - len(self.dropped_rows)]
        self.bad.update(later.bad)
        self.code |= later.code
        goes_on = bool(self.files) and self.files[-1:] == later.files[:1]
        first = len(self.files) - goes_on
        self.files += later.files[goes_on:]
        self.file_formats += later.file_formats[goes_on:]
        return first


def _both(names: str, more: str) -> str:
    return ", ".join(sorted({*names.split(", "), *more.split(", ")} - {""}))


@attrs.frozen
class Chunk:
    """Encoded rows that follow one another. `blobs` are tokens.bin, learn.bin and rows.jsonl; `arrays` those of `ARRAYS`
    and `value-*`, counted from the chunk's own beginning."""

    info: StoreInfo
    blobs: dict[str, bytes]
    arrays: dict[str, np.ndarray]


class StoreWriter:
    """Writes a store into an empty folder, chunk by chunk; `finish` makes it readable. Holds no row in memory."""

    def __init__(self, folder: Path, bytes_per_id: int) -> None:
        self.folder, self.info = folder, StoreInfo(bytes_per_id=bytes_per_id)
        self._files: dict[str, IO[bytes]] = {}
        for name in (TOKENS, LEARN, ROWS):
            self._put(name, b"")
        for name in ARRAYS:
            self._put(_file(name), np.zeros(int(name in _STARTS), dtype=ARRAYS[name]).tobytes())

    def append(self, chunk: Chunk) -> None:
        """Add the next rows."""
        info = self.info
        before = {"sequence_starts": info.tokens, "unit_starts": info.sequences, "row_starts": info.kept_bytes}
        before["unit_rows"] = info.rows
        before["files"] = info.add(chunk.info)  # from here on the chunk is counted
        for name, blob in chunk.blobs.items():
            self._put(name, blob)
        for name, values in chunk.arrays.items():
            shifted = values + before[name] if name in before else values
            self._put(_file(name), shifted.astype(ARRAYS.get(name, VALUE_TYPE), copy=False).tobytes())

    def finish(self) -> None:
        """Write what says that the store is whole; nothing can be added after."""
        self.close()
        for name, (size, _) in self.info.checks.items():
            if name.startswith(VALUE) and size != self.info.units * np.dtype(VALUE_TYPE).itemsize:
                raise MMError(f"only some rows have the value {name.removeprefix(VALUE).removesuffix('.bin')!r}")
        text = json.dumps(attrs.asdict(self.info), ensure_ascii=False)
        (self.folder / INFO).write_text(f"{zlib.crc32(text.encode())}\n{text}\n", encoding="utf-8")

    def close(self) -> None:
        """Close the files, finished or not."""
        for file in self._files.values():
            file.close()

    def _put(self, name: str, data: bytes) -> None:
        if name not in self._files:
            self._files[name] = (self.folder / name).open("wb")
        size, checksum = self.info.checks.get(name, [0, 0])
        self._files[name].write(data)
        self.info.checks[name] = [size + len(data), zlib.crc32(data, checksum)]


def read_info(folder: Path) -> StoreInfo | None:
    """What the folder's store holds, or None when it is not there or not what was written: every byte is checked."""
    try:
        checksum, _, text = (folder / INFO).read_text(encoding="utf-8").rstrip("\n").partition("\n")
        if int(checksum) != zlib.crc32(text.encode()):
            return None
        values = json.loads(text)
        info = StoreInfo(**{**values, "bad": BadRows(**values["bad"])})
        same_sizes = all((folder / name).stat().st_size == size for name, (size, _) in info.checks.items())
        whole = same_sizes and all(_checksum(folder / name) == check for name, (_, check) in info.checks.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return info if whole else None


def read_array(folder: Path, name: str) -> np.ndarray:
    """An array of `ARRAYS` or a value, through a memory map."""
    return read_map(folder / _file(name), np.dtype(ARRAYS.get(name, VALUE_TYPE)))


def read_map(path: Path, kind: np.dtype[Any]) -> np.ndarray:
    """A file's numbers; a plain array over the map, as slicing a memmap object costs several times as much."""
    return np.asarray(np.memmap(path, dtype=kind, mode="r")) if path.stat().st_size else np.zeros(0, kind)


def _file(name: str) -> str:
    return f"{name}.bin"


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found
