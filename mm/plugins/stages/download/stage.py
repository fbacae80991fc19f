"""The stage that checks the data before any long stage starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm.contracts import Stage, StageResult
from mm.core.config.composition import SELECT
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import SourceSpec, StageSpec
from mm.runtime.data.corpus import open_source
from mm.runtime.data.sources import read_sections, source_sections


class Download(Stage):
    """Checks that the data given with `--data` can be read. Nothing is fetched: the built-in data is part of the package."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """`--data`, and the options of sources."""
        return (SELECT.option("data"), *(option for section in source_sections(plugins) for option in section.options))

    def check(self) -> None:
        """Raise UsageError if data given with `--data` does not exist."""
        self._digests()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The digests of the data given with `--data`."""
        return {"data": self._digests()}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line: the data."""
        return self._line()

    def seconds(self, artifacts: Mapping[str, Path]) -> float:
        """A few seconds."""
        return 1.0

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Print that there is nothing to download."""
        self.say(self._line())
        return StageResult({}, self._line())

    def _digests(self) -> dict[str, str]:
        parts = read_sections(source_sections(self.plugins), self.layers)
        return {name: open_source(self.plugins, name, "", parts).digest() for name in self._named()}

    def _named(self) -> Sequence[str]:
        return SELECT.read(self.layers).data

    def _line(self) -> str:
        if named := self._named():
            return f"data: {', '.join(named)}; nothing to download"
        sources = [s.name for s in self.plugins.specs(SourceSpec) if s.provides]
        return f"skipped: the built-in data ({', '.join(sources)}) is part of mm"
