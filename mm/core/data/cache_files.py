"""The files of a token cache: written as rows come, read through memory maps.

tokens.bin (uint16 or uint32) and learn.bin (bool) hold all sequences end to end. arrays.npz holds, for each sequence,
where it ends; for each unit its last sequence, its row, file and line, a hash of its row's content and its values.
rows.jsonl holds the JSON rows, for kinds of row that want them kept. info.json is written last and says what to expect.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np

from mm.core.contracts import Position
from mm.core.data.rows import Encoded
from mm.core.errors import MMError

TOKENS, LEARN, ROWS, ARRAYS, INFO = "tokens.bin", "learn.bin", "rows.jsonl", "arrays.npz", "info.json"
COUNTS = (
    "rows", "units", "sequences", "tokens", "learned_tokens", "learned_bytes", "truncated", "dropped", "dropped_rows",
    "files", "kept_bytes",
)  # fmt: skip
_ARRAY_TYPES = {
    "sequence_ends": "q", "unit_ends": "q", "unit_rows": "q", "files": "q", "lines": "q", "hashes": "Q", "row_ends": "q",
}  # fmt: skip
_NAMED = 20  # dropped rows that are listed by position


@attrs.define(kw_only=True)
class StoreInfo:
    """What is in a store. `learned_tokens` are the targets, `learned_bytes` the UTF-8 bytes that they stand for,
    `truncated` and `dropped` count rows, of which the first twenty dropped are named."""

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
    kept_bytes: int = 0
    bytes_per_id: int = 2


class StoreWriter:
    """Writes a store into an empty folder, row by row; `finish` makes it readable."""

    def __init__(self, folder: Path, token_bytes: np.ndarray) -> None:
        self.folder, self.info, self._token_bytes = folder, StoreInfo(), token_bytes
        self._type = np.dtype(np.uint16 if len(token_bytes) <= 1 << 16 else np.uint32)
        self.info.bytes_per_id = self._type.itemsize
        self._tokens: IO[bytes] = (folder / TOKENS).open("wb")
        self._learn: IO[bytes] = (folder / LEARN).open("wb")
        self._rows: IO[bytes] = (folder / ROWS).open("wb")
        self._arrays: dict[str, array[Any]] = {name: array(code) for name, code in _ARRAY_TYPES.items()}

    def add(self, position: Position, encoded: Encoded, raw: Mapping[str, Any] | None) -> None:
        """Append one row's units; `raw` is its JSON row when that is to be kept."""
        self.info.truncated += encoded.truncated
        if not encoded.units:
            self.info.dropped += 1
            if len(self.info.dropped_rows) < _NAMED:
                self.info.dropped_rows.append(f"{position.path}:{position.line}")
        content = hashlib.blake2b(digest_size=8)
        for unit in encoded.units:
            for ids, learn in unit:
                content.update(self._sequence(ids, learn) + b"|")
            self._arrays["unit_ends"].append(self.info.sequences)
        self._describe(position, encoded, int.from_bytes(content.digest(), "little"))
        if raw is not None:
            self._rows.write(json.dumps(raw, ensure_ascii=False).encode() + b"\n")
            self.info.kept_bytes = self._rows.tell()
            self._arrays["row_ends"].append(self.info.kept_bytes)
        self.info.rows += 1

    def finish(self) -> None:
        """Write what describes the sequences; nothing can be added after."""
        self.close()
        arrays: dict[str, Any] = {name: np.array(values) for name, values in self._arrays.items()}
        np.savez(self.folder / ARRAYS, **arrays)
        (self.folder / INFO).write_text(json.dumps(attrs.asdict(self.info), ensure_ascii=False), encoding="utf-8")

    def close(self) -> None:
        """Close the files, finished or not."""
        for file in (self._tokens, self._learn, self._rows):
            file.close()

    def _sequence(self, ids: list[int], learn: list[bool]) -> bytes:
        if not ids or len(ids) != len(learn):
            raise MMError(f"a row gave a sequence of {len(ids)} ids and {len(learn)} marks")
        if not 0 <= min(ids) <= max(ids) < len(self._token_bytes):
            raise MMError(f"a row gave ids outside the vocabulary of {len(self._token_bytes)}")
        tokens, marks = np.array(ids, dtype=self._type), np.array(learn, dtype=np.bool_)
        self._tokens.write(tokens.tobytes())
        self._learn.write(marks.tobytes())
        targets = tokens[1:][marks[1:]]  # the first token has nothing to be predicted from
        self.info.sequences += 1
        self.info.tokens += len(ids)
        self.info.learned_tokens += len(targets)
        self.info.learned_bytes += int(self._token_bytes[targets].sum())
        self._arrays["sequence_ends"].append(self.info.tokens)
        return tokens.tobytes()

    def _describe(self, position: Position, encoded: Encoded, content: int) -> None:
        if not self.info.files or self.info.files[-1] != position.path:
            self.info.files.append(position.path)
        units = len(encoded.units)
        rest = {"unit_rows": self.info.rows, "files": len(self.info.files) - 1, "lines": position.line, "hashes": content}
        for name, value in rest.items():
            self._arrays[name].extend([value] * units)
        for values in encoded.values:
            for name, number in values.items():
                self._arrays.setdefault(f"value_{name}", array("d")).append(float(number))
        self.info.units += units


def read_info(folder: Path) -> StoreInfo | None:
    """What the folder's store holds, or None when it is not there or not whole."""
    try:
        info = StoreInfo(**json.loads((folder / INFO).read_text(encoding="utf-8")))
        sizes = (info.tokens * info.bytes_per_id, info.tokens, info.kept_bytes)
        whole = all((folder / name).stat().st_size == size for name, size in zip((TOKENS, LEARN, ROWS), sizes, strict=True))
    except (OSError, ValueError, TypeError):
        return None
    return info if whole and (folder / ARRAYS).is_file() else None
