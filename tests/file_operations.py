"""The file operations of this process inside one folder: written down as they come, and ended at a chosen one."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

# (the number of an operation, the bytes that a file may still have): SIGKILL just before it, or, if the bytes are given, the
# end of the process inside the first write from then on that would make a file longer
Kill = tuple[int, int | None]

# audit event -> the places of its path and of its dir_fd
_EVENTS: dict[str, tuple[int, int | None]] = {
    "os.rename": (1, 3), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.mkdir": (0, 2), "os.truncate": (0, None),
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR


def watch(folder: str, kill: Kill | None, log: int) -> None:
    """Write a line EVENT PATH to the file `log` for each operation in `folder` that changes a file, and end the process as
    `kill` says. Not to be undone: for processes that end soon."""
    root, number, ended = os.path.realpath(folder), 0, False
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and a write would fail instead

    def operation(event: str, path: str) -> None:
        nonlocal number, ended
        path = os.path.abspath(path)
        if ended or not path.startswith(f"{root}/"):
            return
        os.write(log, f"{event} {path[len(root) + 1 :]}\n".encode())
        number += 1
        if kill and number == kill[0]:
            ended = True
            if kill[1] is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (kill[1], resource.RLIM_INFINITY))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and arguments[2] & _WRITING:
            operation(event, os.fsdecode(arguments[0]))
        elif event in _EVENTS:
            place, folder_place = _EVENTS[event]
            parent = arguments[folder_place] if folder_place is not None else -1
            name = os.fsdecode(arguments[place])
            operation(event, name if parent == -1 else os.path.join(_path(parent), name))

    os.fsync = _before(os.fsync, lambda handle: operation("os.fsync", _path(handle)))
    sys.addaudithook(audit)


def _path(handle: Any) -> str:
    """The path of an open file."""
    return os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}")


def _before(function: Callable[[Any], None], call: Callable[[Any], None]) -> Callable[[Any], None]:
    def wrapped(handle: Any) -> None:
        call(handle)
        function(handle)

    return wrapped
