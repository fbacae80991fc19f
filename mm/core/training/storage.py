"""Folders that are whole or not there: written aside, hashed into an index, fsynced, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mm.core.errors import CheckpointError

INDEX = "index.json"


@contextmanager
def whole_folder(final: Path, *, index: bool = True) -> Iterator[Path]:
    """A temporary folder beside `final`; on leaving it is sealed and takes that name, replacing what stood there.

    On an error the temporary folder is removed and `final` stays as it was. Without `index` only the files that the
    caller wrote are in it, for layouts that other programs define.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        (seal if index else flush)(temporary)
        replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def seal(folder: Path) -> None:
    """Write the index of every file's size and SHA-256, and flush all to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != INDEX)
    entries = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": digest(p)} for p in files}
    (folder / INDEX).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    flush(folder)


def flush(folder: Path) -> None:
    """Flush a folder and all that it holds to disk."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def verify(folder: Path) -> None:
    """Raise CheckpointError naming the first file that is missing or differs from the index."""
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX}: {error}") from None
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if path.stat().st_size != entry["size"] or digest(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: it differs from the hash in {INDEX}.")


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace(source: Path, final: Path) -> None:
    """Rename a folder over another: the old one is moved aside first, and removed last."""
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.rename(final, aside)
    os.rename(source, final)
    _fsync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
