"""Folders that are complete or absent: written under a temporary name, hashed into an index, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mm.core.errors import CheckpointError, StorageError
from mm.runtime.hubs.checksum import sha256_of
from mm.runtime.text.json_file import read_object

INDEX = "index.json"
_LEFT_OVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>old|tmp|\d+)")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust report it
_CURES = {
    "Make room there, or name another place.": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "See that it may be read and written, or name another place.": (errno.EROFS, errno.EACCES, errno.EPERM),
    "A file is where a folder is needed, or the reverse: move it away, or name another place.": (
        errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    ),
    "Choose a shorter name.": (errno.ENAMETOOLONG,),
    "It was removed meanwhile, or nothing can be made there: name another place.": (errno.ENOENT,),
    "The device fails: name another place.": (errno.EIO,),
}  # fmt: skip


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
    remove_abandoned(final.parent, final.name)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with name_errors(temporary, final):
            temporary.mkdir()
            yield temporary
            (seal if index else flush)(temporary)
            (replace if overwrite else os.rename)(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder. At the end of the block its files replace those of the same names in `folder`; other files there
    are kept. If the block raises, `folder` stays as it was, or missing."""
    if not folder.exists():
        with atomic_folder(folder, index=False) as temporary:
            yield temporary
        return
    temporary = folder / f".new.{os.getpid()}"
    remove_abandoned(folder, "new")
    try:
        with name_errors(temporary, folder):
            temporary.mkdir()
            yield temporary
            flush(temporary)
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(final: Path) -> Iterator[IO[bytes]]:
    """Yields a new binary file. At the end of the block it is flushed to disk and renamed to `final`; if the block raises, it is
    deleted and `final` stays as it was, or missing."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    remove_abandoned(final.parent, final.name)
    try:
        with name_errors(temporary, final):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def name_errors(temporary: Path, final: Path) -> Iterator[None]:
    """Give an OSError that names no file, or something at `temporary`, the place that the user knows: `final`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(temporary)):
            error.filename = str(final)
        raise


def native_error(error: Exception, path: Path) -> Exception:
    """The OSError that a library written in Rust reports in the text of its own exception; any other exception is returned."""
    found = _OS_ERROR.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else error


def storage_error(error: OSError, *, further: str = "") -> StorageError | None:
    """The message for a file that cannot be written (no space, no permission, a device error), or None for another error: path,
    reason, cure, and what can be done `further`."""
    cure = next((cure for cure, numbers in _CURES.items() if error.errno in numbers), None)
    text = f"{error.filename or 'A file'}: {error.strerror}. {cure} {further}"
    return StorageError(text.rstrip()) if cure else None


def seal(folder: Path) -> None:
    """Write an index with the size and SHA-256 of every file, and flush the folder to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != INDEX)
    entries = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
    (folder / INDEX).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    flush(folder)


def flush(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def verify(folder: Path, required: Sequence[str] = ()) -> None:
    """Raise CheckpointError naming the first file that is missing or differs from the index, or a damaged index: one that lists
    nothing, or not the `required` files."""
    try:
        index = read_object(folder / INDEX)
        entries = {folder / name: (entry["size"], entry["sha256"]) for name, entry in index.items()}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX}: {error}") from None
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError(f"{folder / INDEX} is damaged: it is not a table of sizes and hashes.") from None
    if absent := [name for name in required if name not in index]:
        raise CheckpointError(f"{folder / INDEX} is damaged: it does not list {absent[0]}.")
    for path, (size, sha256) in entries.items():
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if path.stat().st_size != size or sha256_of(path) != sha256:
            raise CheckpointError(f"{path} is damaged: it differs from the hash in {INDEX}.")


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of the files in a folder. If the folder has an index, only that is
    hashed, as it contains the hashes of all files."""
    total = hashlib.sha256()
    index = path / INDEX
    files = [path] if path.is_file() else [index] if index.exists() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


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
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
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
        else:
            _delete(path)


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Delete the temporary folders and files in `folder` (those for `name`, if it is given) whose process has ended. Other
    processes may be creating theirs meanwhile."""
    for path in folder.glob(".*"):
        match = _LEFT_OVER.fullmatch(path.name)
        if match and match["kind"].isdigit() and name in ("", match["name"]) and not _is_alive(int(match["kind"])):
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        pass
    return True


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
