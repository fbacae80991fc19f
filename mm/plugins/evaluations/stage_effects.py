"""The effect of each training stage on held-out skills: the shares of right answers before and after it, over the suites that
its data teaches and over all other suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.core.workspace import RunFolder, Workspace
from mm.plugins.sources.skills.held_out_items import SuiteScore, file_of, seed_of
from mm.plugins.sources.skills.suites import TEACHES
from mm.runtime.models.finding import find_model, run_of
from mm.runtime.runs.reading import settings

TIER = "new"


@attrs.frozen
class TrainedModel:
    """The model that a stage or run has trained: its name (of the stage or run), its folder, and its run.

    `run` is None for a model folder outside of any run: nothing is known of its training.
    """

    name: str
    model: Path
    run: RunFolder | None

    @classmethod
    def of(cls, model: Path, name: str = "") -> TrainedModel:
        """The model in the folder `model`; by default it has its run's name, or the folder's."""
        run = run_of(model)
        return cls(name or (run.name if run else model.name), model.resolve(), run)

    def start(self, workspace: Workspace) -> TrainedModel | None:
        """The model that its training started from; None if that is unknown or no longer exists."""
        path = settings(self.run).get("from") if self.run else None
        try:
            return TrainedModel.of(find_model(path, workspace)) if path else None
        except UsageError:
            return None

    def seed(self) -> int | None:
        """The seed of the skills corpus in its training data; None if it was not trained on that corpus."""
        return next((seed for part in self._data() if (seed := seed_of(part["locator"])) is not None), None)

    def files(self, plugins: PluginManager, seed: int) -> list[str]:
        """The files of the skills corpus of that seed that it was trained on."""
        kinds = {spec.name: spec.row for spec in plugins.specs(FormatSpec)}
        names = [file_of(part["locator"], kinds.get(part["format"], ""), seed) for part in self._data()]
        return [name for name in names if name]

    def _data(self) -> list[dict[str, Any]]:
        return self.run.manifest.get("data", []) if self.run else []


def taught_suites(trained: TrainedModel, plugins: PluginManager, workspace: Workspace, seed: int) -> tuple[str, ...]:
    """The suites that the training data teaches.

    Files that an earlier model in the chain of starting models was trained on count as rehearsal and teach nothing, unless
    there are no other files.
    """
    files, known, earlier = trained.files(plugins, seed), set[str](), trained.start(workspace)
    while earlier:
        known |= {*earlier.files(plugins, seed)}
        earlier = earlier.start(workspace)
    taught = [file for file in files if file not in known] or files
    return tuple(dict.fromkeys(suite for file in taught for suite in TEACHES[file]))


def stage_effects(
    plugins: PluginManager,
    workspace: Workspace,
    models: Sequence[TrainedModel],
    reports: Mapping[Path, dict[str, Any]],
    seed: int,
) -> list[dict[str, Any]]:
    """One entry for each model that was trained on rows of the skills corpus of that seed, as JSON values.

    `reports` maps the folder of each model, and of each model that one was started from, to its report. The shares pool all
    items of the tier `new`; `before` and `others_before` are None if the starting model is not known.
    """
    effects = []
    for trained in models:
        if suites := taught_suites(trained, plugins, workspace, seed):
            start = trained.start(workspace)
            before, after = reports[start.model] if start else None, reports[trained.model]
            effects.append({"stage": trained.name, "start": before and before["model"]["name"], "suites": suites, **{
                key: report and _pooled_share(report, suites, others=others)
                for key, report, others in (
                    ("before", before, False), ("after", after, False),
                    ("others_before", before, True), ("others_after", after, True),
                )
            }})  # fmt: skip
    return effects


def _pooled_share(report: dict[str, Any], suites: Sequence[str], *, others: bool) -> dict[str, Any]:
    """The share of right answers over all items of these suites, or with `others` of all other suites."""
    pooled = [f for f in report["skills"] if f["tier"] == TIER and (f["suite"] in suites) != others]
    right, total = sum(f["right"] for f in pooled), sum(f["total"] for f in pooled)
    return SuiteScore(suite="others" if others else "taught", tier=TIER, right=right, total=total).as_dict()
