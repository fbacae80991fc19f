"""Ending a run whose folder was renamed or removed while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mm.core.callback import Callback
from mm.core.errors import StorageError
from mm.core.workspace import RunFolder

if TYPE_CHECKING:
    from mm.core.callback import TrainingView


class InPlace(Callback):
    """Checks that the run's folder is where the run began, before other callbacks write there. Only on the main rank.

    The folder is recognised by the text of its lock file, which names the process. Another run may have the path meanwhile.
    """

    name = "in-place"

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self._lock = folder, ""

    def on_start(self, run: TrainingView) -> None:
        """Remember the lock file's text."""
        self._lock = self._read_lock()

    def on_step(self, run: TrainingView) -> None:
        """Raise StorageError if the folder is no longer there."""
        self.check()

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """See `on_step`."""
        self.check()

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """See `on_step`."""
        self.check()

    @property
    def is_lost(self) -> bool:
        """True if the folder was there when the run began and is no longer. False on a rank that does not watch it."""
        return bool(self._lock) and self._read_lock() != self._lock

    def check(self) -> None:
        """Raise StorageError if the folder was renamed or removed."""
        if self.is_lost:
            raise StorageError(
                f"{self.folder.path}, the folder of run {self.folder.name}, was renamed or removed while it trained; nothing "
                "more is written. If it was renamed, resume it under its new name: mm train --resume --run NEW-NAME."
            )

    def _read_lock(self) -> str:
        try:
            return (self.folder.path / ".lock").read_text(encoding="utf-8")
        except OSError:
            return ""
