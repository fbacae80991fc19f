"""The contract of a tracker: a callback that is selected by name and has options. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm.core.callback import Callback

if TYPE_CHECKING:
    from mm.core.workspace import RunFolder


class Tracker(Callback):
    """Records the metrics of a run, on the main rank. `config` is an instance of the record's config class, None if it has none;
    `folder` is the run's folder, which exists from `on_start` on."""

    required = False

    def __init__(self, config: Any, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
