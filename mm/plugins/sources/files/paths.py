"""The files that a path of the user stands for: one file, or all files of rows below a folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from mm.core.errors import UsageError, close_match
from mm.core.workspace import Workspace
from mm.plugins.sources.files import DOCUMENTS, SHOWN_SUFFIXES, suffix_of

_MAX_NAMED = 5  # skipped files that a note names
# texts about the data, which are found beside it in folders
_ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|citation|contributing)\b", re.IGNORECASE)
_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@attrs.frozen
class DataFile:
    """A file to read: its path, and how messages show it (a name may have bytes that are no text)."""

    path: str
    shown: str

    @property
    def size(self) -> int:
        """The size in bytes; 0 if it cannot be read."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    @property
    def fault(self) -> str:
        """The reason why it is not a file that can be read; "" if it is one."""
        return _fault(self.path)


@attrs.frozen
class DataFiles:
    """The files that are read, and lines for the user about those that are not."""

    files: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()


def find_files(locator: str, row_kind: str) -> DataFiles:
    """The file `locator`, or those below that folder in the order of their names. Raises UsageError if there are none.

    Hidden files, links to folders, and files with other suffixes are skipped; so are documents if another kind of row than text
    is needed and there are other files.
    """
    path = _expand(locator)
    if _is_folder(path):
        return _find_in_folder(locator, path, row_kind)
    if fault := _fault(path):
        raise UsageError(f"{_shown(locator)} {fault}.{_place_and_names(locator, path) if not os.path.lexists(path) else ''}")
    if not suffix_of(path):
        raise UsageError(f"{_shown(locator)}: rows are read from {SHOWN_SUFFIXES} files, and folders of them.")
    return DataFiles((DataFile(path, _shown(locator)),))


def _find_in_folder(locator: str, folder: str, row_kind: str) -> DataFiles:
    names = sorted(_walk(folder, locator))
    rows, kept = row_files(names, ""), row_files(names, row_kind)
    if not kept:
        raise UsageError(f"{_shown(locator)} is a folder without {SHOWN_SUFFIXES} files.")
    skipped = [name for name in names if name not in set(rows)]
    texts = [name for name in rows if name not in set(kept)]
    notes = (
        *_note(locator, f"rows are read from {SHOWN_SUFFIXES} files, but not from a README and the like", skipped),
        *_note(locator, f"plain text has no {row_kind} rows", texts),
    )
    return DataFiles(tuple(DataFile(os.path.join(folder, n), _shown(os.path.join(locator, n))) for n in kept), notes)


def row_files(names: Sequence[str], row_kind: str) -> list[str]:
    """The names of files with rows of that kind, "" for any: without a README and the like, without hidden files, and without
    documents if another kind than text is needed and there are other files."""
    rows = [
        name
        for name in names
        if suffix_of(name) and not _ABOUT.match(os.path.basename(name)) and not any(part[0] == "." for part in name.split("/"))
    ]
    kept = [name for name in rows if row_kind in ("", "text") or suffix_of(name) not in DOCUMENTS]
    return kept or rows


def _walk(folder: str, locator: str) -> Iterator[str]:
    """The paths of the files below a folder, relative to it, and of links to folders, which are not followed."""

    def fail(error: OSError) -> None:
        raise UsageError(f"{_shown(locator)}: {_shown(str(error.filename))} cannot be read: {error.strerror}.")

    for base, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [f"{name}/" for name in folders if os.path.islink(os.path.join(base, name))]
        yield from (os.path.join(os.path.relpath(base, folder), n).removeprefix("./") for n in (*names, *links) if n[0] != ".")


def _note(locator: str, reason: str, names: Sequence[str]) -> list[str]:
    more = len(names) - _MAX_NAMED
    listed = ", ".join(map(_shown, names[:_MAX_NAMED])) + (f" and {more} more" if more > 0 else "")
    return [f"{_shown(locator)}: skipped, as {reason}: {listed}"] if names else []


def _fault(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to a file that does not exist" if os.path.lexists(path) else "does not exist"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"cannot be read ({getattr(error, 'strerror', error)})"
    if stat.S_ISREG(mode):
        return ""
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or socket"
    return f"is {kind} and not a file: data is read more than once, so write it to a file first"


def _place_and_names(locator: str, path: str) -> str:
    """The tail of an error message: where a relative path was looked for, and similar names there."""
    folder, name = os.path.split(path)
    hint = close_match(name, map(_shown, os.listdir(folder or ".") if os.path.isdir(folder or ".") else []))
    if os.path.isabs(path):
        return hint
    elsewhere = Workspace.here().path / path
    there = f" The workspace has it: {elsewhere}." if os.path.exists(elsewhere) else ""
    return f" It was looked for in the current folder, {os.getcwd()}.{there}{hint}"


def _expand(locator: str) -> str:
    try:
        return str(Path(locator).expanduser())
    except RuntimeError:  # the home of an unknown user
        return locator


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _shown(path: str) -> str:
    """The path without characters that cannot be printed or written as UTF-8."""
    return _UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), path)
