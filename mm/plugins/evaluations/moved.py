"""What each training moved: the suites that its data teaches, and all others, before it and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.core.workspace import RunFolder, Workspace, find_model, run_of
from mm.plugins.sources.skills.evaluation import SuiteScore, file_of, seed_of
from mm.plugins.sources.skills.suites import TEACHES
from mm.runtime.runs.reading import settings

TIER = "new"


@attrs.frozen
class Trained:
    """A model that was trained, by its stage or its run's name, with that run. Without one, nothing is known of it."""

    name: str
    model: Path
    run: RunFolder | None

    @classmethod
    def of(cls, model: Path, name: str = "") -> Trained:
        """The model of that folder."""
        run = run_of(model)
        return cls(name or (run.name if run else model.name), model.resolve(), run)

    def start(self, workspace: Workspace) -> Trained | None:
        """What it was trained from, where that is known and still there."""
        path = settings(self.run).get("from") if self.run else None
        try:
            return Trained.of(find_model(path, workspace)) if path else None
        except UsageError:
            return None

    def seed(self) -> int | None:
        """The seed of the skills corpus that it learned from, if it did."""
        return next((seed for part in self._data() if (seed := seed_of(part["locator"])) is not None), None)

    def files(self, plugins: PluginManager, seed: int) -> list[str]:
        """The files of that corpus which it was trained on."""
        kinds = {spec.name: spec.row for spec in plugins.specs("format") if isinstance(spec, FormatSpec)}
        found = [file_of(part["locator"], kinds.get(part["format"], ""), seed) for part in self._data()]
        return [name for name in found if name]

    def _data(self) -> list[dict[str, Any]]:
        return self.run.manifest.get("data", []) if self.run else []


def suites_of(trained: Trained, plugins: PluginManager, workspace: Workspace, seed: int) -> tuple[str, ...]:
    """The suites that its data teaches. Files that the models before it learned from, too, are rehearsal, unless there
    are no others."""
    files, known, before = trained.files(plugins, seed), set[str](), trained.start(workspace)
    while before:
        known |= {*before.files(plugins, seed)}
        before = before.start(workspace)
    taught = [file for file in files if file not in known] or files
    return tuple(dict.fromkeys(suite for file in taught for suite in TEACHES[file]))


def moved(
    plugins: PluginManager, workspace: Workspace, trained: Sequence[Trained], reports: Mapping[Path, dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """A line for each training on rows of the corpus: pooled figures of the tier `new`, `before` None without a start."""
    lines = []
    for one in trained:
        if suites := suites_of(one, plugins, workspace, seed):
            start = one.start(workspace)
            before = reports[start.model] if start else None
            lines.append({"stage": one.name, "start": before and before["model"]["name"], "suites": suites, **{
                key: report and _pooled(report, suites, others=others)
                for key, report, others in (
                    ("before", before, False), ("after", reports[one.model], False),
                    ("others_before", before, True), ("others_after", reports[one.model], True),
                )
            }})  # fmt: skip
    return lines


def _pooled(report: dict[str, Any], suites: Sequence[str], *, others: bool) -> dict[str, Any]:
    """All items of these suites, or of all others, as one figure."""
    found = [f for f in report["skills"] if f["tier"] == TIER and (f["suite"] in suites) != others]
    right, total = sum(f["right"] for f in found), sum(f["total"] for f in found)
    return SuiteScore(suite="others" if others else "taught", tier=TIER, right=right, total=total).as_dict()
