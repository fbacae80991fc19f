"""Where a rank stands, for the launcher that watches it: the step, the phase, and the collective that it is in.

A rank writes it into a small file that is mapped into memory, which costs about a microsecond and outlives a killed process.
Imports no torch.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs

# the exit code of a rank that has lost another one, whose own end says more
LOST_PEER = 75
# the variable that names the interface of gloo, which joins the hosts of all ranks
HOST_INTERFACE = "GLOO_SOCKET_IFNAME"
# a rank that is asked to stop and waits for a rank that does not come ends after this time
_LAST_SECONDS = 120.0
# the launcher sets it to the folder of these files
FOLDER = "MM_BEACONS"
_SIZE = 512
_HEAD = struct.Struct("<Qdq")  # changes so far, the time of the last one, the step


@attrs.frozen
class Place:
    """The last lines of a rank: the number of `changes` so far, the time of the last one in seconds since 1970, the `step` (-1:
    none yet), the part of it, and the collective in which the rank waits for the others ("": in none)."""

    changes: int
    since: float
    step: int
    part: str
    collective: str

    def __str__(self) -> str:
        """A phrase such as `in step 7, backward, waiting for the other ranks in: sum of gradients`."""
        where = [f"in step {self.step}" if self.step >= 0 else "before the first step", *([self.part] if self.part else [])]
        return ", ".join([*where, *([f"waiting for the other ranks in: {self.collective}"] if self.collective else [])])


class Beacon:
    """Writes this rank's place; without a launcher that reads it, does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._map: mmap.mmap | None = None
        self._changes, self._step, self._parts, self._collective = 0, -1, list[str](), ""
        if path is not None:
            with path.open("w+b") as file:
                file.truncate(_SIZE)
                self._map = mmap.mmap(file.fileno(), _SIZE)

    def step(self, step: int) -> None:
        """The training has begun this step, counted from 1."""
        self._step = step
        self._write()

    def part(self, name: str) -> AbstractContextManager[Any]:
        """Inside the block the rank is in this part of the step."""
        return self._part(name) if self._map is not None else nullcontext()

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self._parts.append(name)
        self._write()
        try:
            yield
        finally:
            self._parts.pop()

    @contextmanager
    def collective(self, name: str) -> Iterator[None]:
        """Inside the block the rank waits for the others. After an error the place stays, for the launcher to read."""
        self._collective = name
        self._write()
        yield
        self._collective = ""
        self._write()

    def _write(self) -> None:
        if self._map is not None:
            self._changes += 1
            text = f"{self._parts[-1] if self._parts else ''}\0{self._collective}".encode()[: _SIZE - _HEAD.size - 1]
            self._map[: _HEAD.size + len(text) + 1] = _HEAD.pack(self._changes, time.time(), self._step) + text + b"\xff"


def read_place(path: Path) -> Place | None:
    """The place in a rank's file; None if it has written none yet."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEAD.size:
        return None
    changes, since, step = _HEAD.unpack_from(data)
    part, _, collective = data[_HEAD.size :].partition(b"\xff")[0].decode(errors="replace").partition("\0")
    return Place(changes, since, step, part, collective) if changes else None


def beacon_path(folder: Path, rank: int | str) -> Path:
    """The file of a rank in the launcher's folder."""
    return folder / f"rank-{rank}"


def stack_path(folder: Path, rank: int | str) -> Path:
    """The file into which a rank writes the stacks of its threads when the launcher asks for it."""
    return folder / f"stack-{rank}"


def _own() -> Beacon:
    folder = os.environ.get(FOLDER)
    return Beacon(beacon_path(Path(folder), os.environ.get("RANK", "0")) if folder else None)


BEACON = _own()


def attach() -> None:
    """Watch the launcher of this rank, that of `mm` or torchrun: if it is gone, the rank stops as on SIGTERM, and saves. The
    launcher of `mm` gets the stacks of all threads on SIGUSR1. Does nothing in a process that is no rank."""
    folder = os.environ.pop(FOLDER, None)  # not for processes that this one starts
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if folder is not None:
        faulthandler.register(signal.SIGUSR1, file=stack_path(Path(folder), os.environ["RANK"]).open("w"), all_threads=True)
    threading.Thread(target=_watch_launcher, args=(os.getppid(),), name="launcher-watch", daemon=True).start()


def _watch_launcher(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_SECONDS)
    os._exit(128 + signal.SIGTERM)
