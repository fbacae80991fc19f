"""The package's exceptions. The command line prints their messages without a traceback and exits with their `exit_code`."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable, Mapping
from typing import Literal


class MMError(Exception):
    """A failure that a message explains better than a traceback. The command line exits with `exit_code`."""

    exit_code = 1


class UsageError(MMError):
    """A mistake of the user: a wrong option, file or name. The message says what is wrong, where, and how to mend it."""

    exit_code = 2


class UnknownPart(UsageError):
    """No usable plugin has the part `kind.name`, which is kept as `part`."""

    def __init__(self, message: str, part: str) -> None:
        super().__init__(message)
        self.part = part


class ConflictingParts(UsageError):
    """Several plugins claim the part that was asked for."""


# the kinds of bad rows that reports count; after "damaged file" the rest of the file cannot be read
Problem = Literal[
    "not JSON", "not text", "wrong type", "missing field", "empty", "role order", "tool call", "unknown format", "wrong value",
    "lost field", "columns",
    "damaged file",
]  # fmt: skip


class DataError(UsageError):
    """A row or file that cannot be used. The message starts with `path:line`, or with `path` if the whole file is meant."""

    def __init__(self, reason: str, path: object = None, line: int | None = None, *, problem: Problem = "wrong value") -> None:
        where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(f"{where}{reason}")
        self.reason, self.path, self.line, self.problem = reason, path, line, problem


class CheckpointError(MMError):
    """A saved model or training state is damaged or incomplete, or does not fit the model that it is loaded into."""


class StorageError(MMError):
    """A file or folder could not be written: the disk is full, permission is missing, or the device fails."""


class Signalled(KeyboardInterrupt):
    """SIGINT or SIGTERM, whose `number` it has, arrived where a command can stop at once."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.number = number


class Interrupted(MMError):
    """A run stopped on a signal. The message ends with `again`, the command that resumes it, if there is one; `exit_code` is
    128 plus the signal's number."""

    def __init__(self, message: str, signal_number: int, *, again: str = "") -> None:
        super().__init__(f"{message} Resume with: {again}" if again else message)
        self.message, self.signal_number, self.again = message, signal_number, again
        self.exit_code = 128 + signal_number


def close_match(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: ` Did you mean 'x'?`, or "" if no known name is similar. `known` may map names to summaries:
    then a name that has the word in its summary is meant if none is similar."""
    matches = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    if not matches and isinstance(known, Mapping) and len(name) > 2:
        matches = [key for key, text in known.items() if name.lower() in re.findall(r"\w+", str(text).lower())][:2]
    return f" Did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""
