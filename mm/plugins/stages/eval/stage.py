"""The evaluation stage: the skills of every trained model, what each training moved, its curve, sample conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen
from attrs.validators import ge, optional

from mm.contracts import Stage, StageResult
from mm.core.config.load_settings import Inference, InferenceComposition
from mm.core.config.sections import Section
from mm.core.layers import Layer
from mm.core.options import Option, option
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.workspace import fingerprint, write_text
from mm.plugins.evaluations import report
from mm.plugins.evaluations.measure import items_digest
from mm.plugins.evaluations.moved import Trained, moved
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.evaluations.table import print_moved, print_reports
from mm.plugins.stages.eval.pictures import draw
from mm.plugins.stages.eval.samples import samples
from mm.runtime.runs import api

if TYPE_CHECKING:
    from mm.runtime.generation.text_model import TextModel

# those whose figures are shown one by one; the samples are the last one's
BASE = ("pretrain", "sft")


@frozen(kw_only=True)
class EvalOptions:
    """What is measured."""

    split: str = option("test", help="Items that are asked.", choices=("dev", "test"))
    skills_seed: int | None = option(None, help="Seed of the skills corpus; by default that of the data.")
    limit: int | None = option(None, help="Most items that are asked.", validator=optional(ge(1)))
    backend: str = option("auto", help="Chip.")


_OPTIONS = Section(name="eval", config=EvalOptions)


class Evaluate(Stage):
    """Writes `reports/eval.json` and the pictures, and prints tables and samples."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """The options above."""
        return _OPTIONS.options

    def check(self) -> None:
        """The options are well typed."""
        self._options()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The models, the items, and how they are asked."""
        trained = self._trained(artifacts)
        settings = self._settings(trained)
        models = {one.name: fingerprint(one.model) for one in trained}
        return {"models": models, "items": items_digest(settings), "settings": attrs.asdict(settings)}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line."""
        return f"skills of the {self._options().split} split of every trained model -> {self._folder}"

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Measure, plot, show."""
        trained = self._trained(artifacts)
        settings = self._settings(trained)
        how = InferenceComposition(self.plugins, [Layer(origin="stage", values={"backend": self._options().backend})]).inference
        api.activate(self.plugins, how.backend, self.say)
        starts = [start for one in trained if (start := one.start(self.workspace))]
        names = {one.model: one.name for one in (*starts, *trained)}
        reports = {model: self._measured(name, model, how, settings) for model, name in names.items()}
        lines = moved(self.plugins, self.workspace, trained, reports, settings.skills_seed)
        base = [one.model for one in trained if one.name in BASE]
        shown = samples(self.plugins, self._open(base[-1], how), settings)
        pictures = draw(trained, BASE, self._folder, self.say)
        values = {
            "reports": list(reports.values()), "moved": lines, "pictures": pictures,
            "samples": [[{"role": role, "content": text} for role, text in turns] for turns in shown],
        }  # fmt: skip
        write_text(self._folder / "eval.json", json.dumps(values, indent=1, ensure_ascii=False))
        print_reports([reports[model] for model in base], stderr=True)
        print_moved(lines, [one.name for one in trained])
        for turns in shown:
            self.say("\n" + "\n".join(f"{role + ':':<11}{text}" for role, text in turns))
        self.say(f"\ncurves: {', '.join(pictures)}")
        return StageResult({"report": self._folder / "eval.json"}, self._summary(trained, reports))

    def _measured(self, name: str, model: Path, how: Inference, settings: EvalSettings) -> dict[str, Any]:
        opened = self._open(model, how)
        if found := report.known(report.describe(name, opened, how, settings)):
            self.say(f"{name}: {model.parent.name} was measured before")
            return found
        self.say(f"{name}: {model.parent.name} is asked")
        found = report.evaluate(self.plugins, name, opened, how, settings, self.workspace, self.say)
        report.keep(found, "")
        return found

    def _open(self, model: Path, how: Inference) -> TextModel:
        from mm.runtime.generation import text_model

        return text_model.load(self.plugins, str(model), self.workspace, how)

    def _trained(self, artifacts: Mapping[str, Path]) -> list[Trained]:
        """Every model that a stage gave, the pretrained one first and the fine-tuned one next."""
        found = {name.removeprefix("run:"): path for name, path in artifacts.items() if name.startswith("run:")}
        stages = sorted(found, key=lambda stage: BASE.index(stage) if stage in BASE else len(BASE))
        return [Trained.of(found[stage], stage) for stage in stages]

    def _settings(self, trained: Sequence[Trained]) -> EvalSettings:
        options = self._options()
        # sft's seed before that of other stages, and of pretraining, which may have had other data
        seeds = [one.seed() for one in sorted(trained, key=lambda one: one.name != BASE[-1])]
        seed = next((s for s in (options.skills_seed, *seeds) if s is not None), 0)
        return EvalSettings(skills=True, split=options.split, skills_seed=seed, limit=options.limit)

    def _summary(self, trained: Sequence[Trained], reports: Mapping[Path, dict[str, Any]]) -> str:
        found = {one.name: reports[one.model]["skills"] for one in trained}
        shares = {name: sum(f["right"] for f in fs) / max(1, sum(f["total"] for f in fs)) for name, fs in found.items()}
        shown = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        return f"all items right: {shown}; {self._folder / 'eval.json'}"

    @property
    def _folder(self) -> Path:
        return self.workspace.path / "reports"

    def _options(self) -> EvalOptions:
        return _OPTIONS.read(self.layers)
