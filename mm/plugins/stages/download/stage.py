"""The stage that fetches and checks the data, and the models of a hub, before any long stage starts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mm.contracts import Stage, StageResult
from mm.core.config.composition import SELECT, TRAIN, Composition
from mm.core.errors import UsageError
from mm.core.layers import Layer, merge
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import SourceSpec, StageSpec
from mm.core.workspace import write_text
from mm.runtime.data.corpus import open_source
from mm.runtime.data.sources import read_sections, source_sections
from mm.runtime.hubs.fetching import Snapshot, downloads
from mm.runtime.hubs.models import is_remote, model_snapshot
from mm.runtime.runs.pinning import remote_data
from mm.runtime.runs.plan import Plan
from mm.runtime.text.wording import count_text, size_text

_RATES = "download-rates.json"


class Download(Stage):
    """Downloads the data and models of a hub that the line names, and checks that other data can be read. The built-in data is
    part of the package."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """Its own, `--data`, `--eval-data`, the options of sources, and those that name further models of a training."""
        sources = [option for section in source_sections(plugins) for option in section.options]
        own = super().options(spec, plugins)
        return (*own, SELECT.option("data"), TRAIN.option("eval_data"), *sources, *_models(plugins))

    def check(self) -> None:
        """Raise UsageError if data does not exist, here or on its hub. Downloads nothing."""
        self._digests()
        list(self._snapshots)

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The digests of local data; of a hub the files with their sizes and hashes, and those that have to be downloaded."""
        remote = {str(s.at): [[f.path, f.size, f.sha256] for f in s.files] for s in self._snapshots}
        return {"data": self._digests(), **({"hub": remote, "missing": self._bytes()} if remote else {})}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """The data and, of a hub, what has to be downloaded, with its size and time."""
        snapshots = self._snapshots
        if not snapshots:
            return self._line()
        seconds, size = self.seconds(artifacts), self._bytes()
        took = "; the time is not known before a first download" if seconds is None else f"; about {seconds:,.0f} s"
        plan = Plan("\n".join(snapshot.plan for snapshot in snapshots) + (took if size else ""))
        plan.values = {"seconds": seconds, "disk": {"downloads": size}, "downloads": {str(s.at): s.plan for s in snapshots}}
        plan.summary = size_text(size)
        return plan

    def seconds(self, artifacts: Mapping[str, Path]) -> float | None:
        """A second, and the download at the rate of the last one of this workspace; None if there was none."""
        rates, total = self._rates(), 1.0
        for snapshot in self._snapshots:
            if size := sum(file.size for file in snapshot.missing):
                if snapshot.at.hub not in rates:
                    return None
                total += size / rates[snapshot.at.hub]
        return total

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Download what is missing."""
        if not self._snapshots:
            self.say(self._line())
            return StageResult({}, self._line())
        with downloads(allowed=True, say=self.say):
            for snapshot in self._snapshots:
                self._fetch(snapshot)
        files = [file for snapshot in self._snapshots for file in snapshot.files]
        summary = f"{count_text(len(files), 'file')} of {', '.join(str(s.at) for s in self._snapshots)}"
        return StageResult({}, f"{summary}, {size_text(sum(file.size for file in files))}")

    def _fetch(self, snapshot: Snapshot) -> None:
        size, begin = sum(file.size for file in snapshot.missing), time.monotonic()
        if not size:
            self.say(snapshot.plan)
        snapshot.paths()
        if size:
            rate = size / max(time.monotonic() - begin, 1e-3)
            write_text(self.workspace.cache / _RATES, json.dumps({**self._rates(), snapshot.at.hub: rate}))

    def _bytes(self) -> int:
        return sum(file.size for snapshot in self._snapshots for file in snapshot.missing)

    def _rates(self) -> dict[str, float]:
        """hub -> bytes in a second of the last download."""
        try:
            found = json.loads((self.workspace.cache / _RATES).read_text(encoding="utf-8"))
            return {hub: float(rate) for hub, rate in found.items() if float(rate) > 0}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    @cached_property
    def _snapshots(self) -> list[Snapshot]:
        """The files of hubs that the line names."""
        parts = read_sections(source_sections(self.plugins), self.layers)
        data = [found for name in self._named() if (found := remote_data(self.plugins, name, "", parts))]
        return [*data, *(model_snapshot(self.plugins, text) for text in self._remote_models())]

    def _remote_models(self) -> Iterator[str]:
        own = self.config.hub_model
        if local := next((text for text in own if not is_remote(text)), ""):
            raise UsageError(f"--hub-model {local} is on no hub: hub:OWNER/NAME, ms:OWNER/NAME or a name of 'mm data list'.")
        values = merge(self.layers, _models(self.plugins))[0]
        further = (text for text in values.values() if isinstance(text, str) and is_remote(text))
        yield from dict.fromkeys((*own, *further))

    def _digests(self) -> dict[str, str]:
        parts = read_sections(source_sections(self.plugins), self.layers)
        local = [name for name in self._named() if not remote_data(self.plugins, name, "", parts)]
        return {name: open_source(self.plugins, name, "", parts).digest() for name in local}

    def _named(self) -> Sequence[str]:
        return (*SELECT.read(self.layers).data, *TRAIN.read(self.layers).eval_data)

    def _line(self) -> str:
        if named := self._named():
            return f"data: {', '.join(named)}; nothing to download"
        sources = [s.name for s in self.plugins.specs(SourceSpec) if s.provides]
        return f"skipped: the built-in data ({', '.join(sources)}) is part of mm"


def _models(plugins: PluginManager) -> list[Option]:
    """The options that name further models of the stages that train, such as `--teacher-from`."""
    found: dict[str, Option] = {}
    for spec in plugins.specs(StageSpec):
        if spec.algorithm:
            composition = Composition(plugins, [Layer(origin="stage", values={"algo": spec.algorithm, **spec.defaults})])
            found |= {o.key: o for section in composition.sections for o in section.options if o.key.endswith("_from")}
    return list(found.values())
