"""Locks between processes. The kernel frees the lock of a process that died, so none is ever left over."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mm.core.errors import UsageError


def held(path: Path) -> bool:
    """Whether a process has the lock file at `path`."""
    import fcntl

    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file at `path`. Raises UsageError when another process has it: `busy`, in which `{holder}` names it."""
    # imported here: the module is missing where flock is, and only trainings need it
    import fcntl

    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(busy.replace("{holder}", file.read() or "another process")) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
