"""The source of a hub's data set: its files in the user's cache, read like any files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from mm.plugins.sources.files.paths import DataFile, DataFiles, row_files
from mm.plugins.sources.files.source import Files
from mm.runtime.hubs.fetching import Snapshot, snapshot
from mm.runtime.hubs.locator import parse


class HubFiles(Files):
    """`locator` is a place of a hub. Files of rows are downloaded when they are first read; nothing else is."""

    catalogue: ClassVar[Path] = Path(__file__).with_name("catalogue.toml")

    @cached_property
    def snapshot(self) -> Snapshot:
        """The files of rows of the repository, or those that the locator takes. Downloads none of them."""
        return snapshot(parse(self.locator), "dataset", lambda names: row_files(names, self.row_kind))

    @cached_property
    def _found(self) -> DataFiles:
        at = self.snapshot.at
        place = f"{at.hub}:{at.repo}"
        return DataFiles(tuple(DataFile(str(path), f"{place}/{name}") for name, path in sorted(self.snapshot.paths().items())))
