"""The one error family: what the user can mend is printed without a traceback, with the exit code it carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal


class MMError(Exception):
    """Something failed that a message explains better than a traceback. The command line exits with `exit_code`."""

    exit_code = 1


class UsageError(MMError):
    """The user's mistake: a wrong option, file or name. The message says what, where and how to mend it."""

    exit_code = 2


# What can be wrong with a row, as reports count it; "damaged file" ends the reading of its file.
Problem = Literal[
    "not JSON", "wrong type", "missing field", "empty", "role order", "tool call", "unknown format", "wrong value", "damaged file"
]  # fmt: skip


class DataError(UsageError):
    """A row or file that cannot be used; the message starts with `file:line`, and without a line it is about the file."""

    def __init__(
        self, reason: str, path: object = None, line: int | None = None, *, problem: Problem = "wrong value"
    ) -> None:
        where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(f"{where}{reason}")
        self.reason, self.path, self.line, self.problem = reason, path, line, problem


class CheckpointError(MMError):
    """A saved model or training state that is damaged, incomplete or does not fit what is asked of it."""


class StorageError(MMError):
    """A file or folder that could not be written: a full disk, a folder of someone else's, a failing device."""


class Interrupted(MMError):
    """A run that stopped on a signal after saving, and how to go on; `exit_code` is 128 plus the signal's number."""

    def __init__(self, message: str, signal_number: int, *, resume_with: str) -> None:
        super().__init__(f"{message} Resume with: {resume_with}")
        self.message, self.signal_number = message, signal_number
        self.exit_code = 128 + signal_number


def close_match(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: ` Did you mean 'x'?`, or the empty string when nothing known is near."""
    found = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(f) for f in found)}?" if found else ""
