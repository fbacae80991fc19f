"""Saving in the background: the state is copied between two steps, and a separate thread writes the copy."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mm.runtime.models.folder import LoadedModel
from mm.runtime.training.checkpoint import Snapshot, capture, write
from mm.runtime.training.distributed import World

if TYPE_CHECKING:
    from mm.runtime.training.state import TrainState

THREAD = "mm-save"


class Saver:
    """Writes the checkpoints of a run into `folder`, at most one at a time.

    Every rank has one and calls it at the same steps. The thread's collectives use a process group of their own, so that
    they cannot be matched with those of a training step. `seconds` is the time that the last save took.
    """

    def __init__(self, loaded: LoadedModel, folder: Path, world: World) -> None:
        self._loaded, self._folder, self._world = loaded, folder, world.with_own_group()
        self._thread: threading.Thread | None = None
        self._written: Path | None = None
        self._error: BaseException | None = None
        self._started = self.seconds = 0.0

    @property
    def failed(self) -> bool:
        """True if a save failed and `pop_completed` has not raised its error yet."""
        return self._error is not None

    def start(self, state: TrainState) -> None:
        """Take a snapshot of the present state and start writing it. Without `--background-save`, return when it is written."""
        background, keep = state.settings.background_save, state.settings.keep_checkpoints
        self._started = time.monotonic()
        snapshot = capture(state, copy=background)
        # a daemon: a second interrupt ends the process without waiting for the disk
        self._thread = threading.Thread(target=self._write, args=(snapshot, keep), name=THREAD, daemon=True)
        self._thread.start()
        if not background:
            self._thread.join()

    def pop_completed(self, *, wait: bool = False) -> Path | None:
        """The checkpoint completed since the last call, if any.

        With `wait`, waits for a save that is under way and raises StorageError if it failed. Without, a failure is not
        raised: a rank may learn of it before the others, and all of them must raise at the same step.
        """
        if self._thread and (wait or not (self._thread.is_alive() or self.failed)):
            self._thread.join()
            self._thread = None
            error, self._error = self._error, None
            path, self._written = self._written, None
            if error:
                raise error
            return path
        return None

    def _write(self, snapshot: Snapshot, keep: int) -> None:
        try:
            self._written = write(snapshot, self._loaded, self._folder, keep, self._world)
            self.seconds = time.monotonic() - self._started
        except BaseException as error:
            self._error = error
