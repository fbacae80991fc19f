"""Writing the good rows of files into a new file, for `mm data check --fix`."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import attrs
import click

from mm.core.errors import UsageError
from mm.runtime.models.storage import atomic_file

SUFFIXES = (".jsonl", ".jsonl.gz")


class FixedFile:
    """Writes rows of one format as JSON lines. The first row decides the format."""

    def __init__(self, file: IO[bytes], out: Path) -> None:
        self.rows, self._file, self._out, self._format = 0, file, out, ""

    def write(self, row: Mapping[str, Any], format: str, path: str) -> None:
        """Append a row. Raises UsageError if its format is not that of the rows before: a file has one format."""
        if self._format not in ("", format):
            raise UsageError(
                f"--fix {self._out}: {path} has {format} rows, but those before it are {self._format}. Fix that file by itself."
            )
        self._format = format
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.rows += 1


@attrs.define
class Output:
    """The output of a command that may also write a file `out`. Then a reader that closes the pipe (`| head`) does not end the
    command: it continues in silence, and `closed` is True."""

    out: Path | None
    closed: bool = False

    def write(self, write: Callable[[], None]) -> None:
        """Call `write`, which prints. Raises BrokenPipeError if the output is closed and no file is written."""
        try:
            write()
        except BrokenPipeError:
            if self.out is None:
                raise
            self.closed = True
            _silence(sys.stdout)
            _tell(f"the output was closed; the check continues, to write {self.out}")


def _tell(line: str) -> None:
    try:
        click.echo(line, err=True)
    except BrokenPipeError:
        _silence(sys.stderr)


def _silence(stream: IO[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def fixed_file(out: Path | None, inputs: Sequence[str]) -> Iterator[FixedFile | None]:
    """A new file that gets the name `out` once it is complete; None if `out` is None.

    Raises UsageError if `out` exists, or does not end in one of `SUFFIXES`.
    """
    if out is None:
        yield None
        return
    if not out.name.endswith(SUFFIXES):
        raise UsageError(f"--fix {out}: the good rows are written as {' or '.join(SUFFIXES)}.")
    if out.exists():
        reason = "is one of the checked files" if any(_is_input(out, name) for name in inputs) else "exists"
        raise UsageError(f"--fix {out} {reason}. Name a new file.")
    try:
        with atomic_file(out) as raw, gzip.open(raw, "wb") if out.suffix == ".gz" else contextlib.nullcontext(raw) as file:
            yield FixedFile(cast(IO[bytes], file), out)
    except BaseException:
        _tell(f"--fix {out}: not written")
        raise


def _is_input(out: Path, name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() and (path.samefile(out) or (path.is_dir() and out.resolve().is_relative_to(path.resolve())))
