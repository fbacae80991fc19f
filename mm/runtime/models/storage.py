"""Folders that are complete or absent: written under a temporary name, hashed into an index, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mm.core.errors import CheckpointError, StorageError
from mm.runtime.text.json_file import read_object

INDEX = "index.json"
_LEFT_OVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>old|tmp|\d+)")
_UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip


@contextmanager
def atomic_folder(final: Path, *, index: bool = True, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary folder beside `final`. At the end of the block it is sealed and renamed to `final`, replacing what is
    there.

    If the block raises, the temporary folder is deleted and `final` stays as it was. Without `index` the folder contains only
    the files that the caller wrote, for layouts that other programs define. Without `overwrite`, raises OSError if `final`
    exists and is not empty.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        (seal if index else flush)(temporary)
        (replace if overwrite else os.rename)(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def explain_write_errors(folder: Path, cure: str) -> Iterator[None]:
    """Turn an OSError of a failed write (no space, no permission, device error) into a StorageError with the path and `cure`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise StorageError(f"{error.filename or folder}: {error.strerror}. {cure}") from None


def seal(folder: Path) -> None:
    """Write an index with the size and SHA-256 of every file, and flush the folder to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != INDEX)
    entries = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": digest(p)} for p in files}
    (folder / INDEX).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    flush(folder)


def flush(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def verify(folder: Path) -> None:
    """Raise CheckpointError naming the first file that is missing or differs from the index, or a damaged index."""
    try:
        index = read_object(folder / INDEX)
        entries = {folder / name: (entry["size"], entry["sha256"]) for name, entry in index.items()}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX}: {error}") from None
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError(f"{folder / INDEX} is damaged: it is not a table of sizes and hashes.") from None
    for path, (size, sha256) in entries.items():
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if path.stat().st_size != size or digest(path) != sha256:
            raise CheckpointError(f"{path} is damaged: it differs from the hash in {INDEX}.")


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace(source: Path, final: Path) -> None:
    """Rename folder `source` to `final`. A folder that is there is moved aside first and deleted last."""
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.rename(final, aside)
    os.rename(source, final)
    _fsync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that its name never refers to a part of it."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left unfinished in `folder`. A folder that it moved aside but did not replace gets its name
    back."""
    for path in folder.glob(".*"):
        match = _LEFT_OVER.fullmatch(path.name)
        if not match:
            continue
        if match["kind"] == "old" and not (final := folder / match["name"]).exists():
            os.rename(path, final)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
