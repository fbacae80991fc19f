"""Locks between processes. The kernel frees the lock of a process that died, so none is ever left over."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mm.core.errors import UsageError


def try_lock(file: IO[str], *, shared: bool = False) -> bool:
    """Lock an open file until it is closed. Returns False, without waiting, if another process holds it."""
    # imported here: the module is missing where flock is, and only trainings and caches need it
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """True if a process holds the lock file at `path`."""
    try:
        with path.open(encoding="utf-8") as file:
            return not try_lock(file, shared=True)
    except FileNotFoundError:
        return False


@contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file at `path`. Raises UsageError if another process has it: `busy`, in which `{holder}` names it."""
    with path.open("a+", encoding="utf-8") as file:
        if not try_lock(file):
            file.seek(0)
            raise UsageError(busy.replace("{holder}", file.read() or "another process"))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


@contextmanager
def in_turn(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file at `path`, waiting for the process that has it; `on_wait` is called before a wait."""
    with path.open("w", encoding="utf-8") as file:
        if not try_lock(file):
            import fcntl

            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
