"""Writes the good rows of files."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from mm.core.errors import UsageError

SUFFIXES = (".jsonl", ".jsonl.gz")


class FixedFile:
    """Rows of one format, as JSON lines. `format` of the rows so far is None before the first."""

    def __init__(self, file: IO[bytes], out: Path) -> None:
        self.rows, self._file, self._out, self._format = 0, file, out, ""

    def write(self, row: Mapping[str, Any], format: str, path: str) -> None:
        """Append a row. Raises UsageError for one of another format: a file has one."""
        if self._format not in ("", format):
            raise UsageError(f"--fix {self._out}: {path} has {format} rows, those before were {self._format}. Fix it by itself.")
        self._format = format
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.rows += 1


@contextlib.contextmanager
def fixed_file(out: Path | None, inputs: Sequence[str]) -> Iterator[FixedFile | None]:
    """A new file that takes its name when it is whole; None without `out`. Raises UsageError for one that exists."""
    if out is None:
        yield None
        return
    if not out.name.endswith(SUFFIXES):
        raise UsageError(f"--fix {out}: the good rows are written as {' or '.join(SUFFIXES)}.")
    if out.exists():
        what = "is what is checked" if any(_same(out, name) for name in inputs) else "exists"
        raise UsageError(f"--fix {out} {what}. Name a new file.")
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, work = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            with gzip.open(raw, "wb") if out.suffix == ".gz" else contextlib.nullcontext(raw) as file:
                yield FixedFile(cast(IO[bytes], file), out)
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(work, 0o666 & ~_umask())
        os.replace(work, out)
    finally:
        Path(work).unlink(missing_ok=True)


def _same(out: Path, name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() and (path.samefile(out) or (path.is_dir() and out.resolve().is_relative_to(path.resolve())))


def _umask() -> int:
    # mkstemp's file is the user's alone, as a temporary one should be; the finished one is like any other
    mask = os.umask(0)
    os.umask(mask)
    return mask
