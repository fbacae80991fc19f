"""The evaluation stage: the skills of every trained model, the effect of each training, its curves, sample conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from mm.contracts import Stage, StageResult
from mm.core.config.sections import Section
from mm.core.layers import Layer
from mm.core.options import Option, option
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.workspace import write_text
from mm.plugins.evaluations import report
from mm.plugins.evaluations.measure import items_digest
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.evaluations.stage_effects import TrainedModel, stage_effects
from mm.plugins.evaluations.table import print_reports, print_stage_effects
from mm.plugins.stages.eval.sample_conversations import sample_conversations
from mm.plugins.stages.eval.training_curves import plot_curves
from mm.runtime.models.load_settings import Inference, InferenceComposition
from mm.runtime.models.storage import fingerprint
from mm.runtime.runs import api

if TYPE_CHECKING:
    from mm.runtime.generation.text_model import TextModel

# the stages whose full reports are printed; the sample conversations are with the model of the last one
BASE = ("pretrain", "sft")


@frozen(kw_only=True)
class EvalOptions:
    """The options of the stage."""

    split: str = option("test", help="Split of the skills corpus whose items are asked.", choices=("dev", "test"))
    skills_seed: int | None = option(
        None, help="Seed of the skills corpus; by default that of the training data.", within="(-inf, inf)"
    )
    limit: int | None = option(None, help="Most items that are asked.", within="[1, inf)")
    backend: str = option("auto", help="Chip.")


_OPTIONS = Section(name="eval", config=EvalOptions)


class Evaluate(Stage):
    """Writes `reports/eval.json` and the plots, and prints the tables and sample conversations."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """The options of `EvalOptions`."""
        return _OPTIONS.options

    def check(self) -> None:
        """Raise UsageError if an option is invalid."""
        self._options()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The fingerprints of the models, the digest of the items, and the settings of the evaluation."""
        trained = self._trained_models(artifacts)
        settings = self._settings(trained)
        models = {one.name: fingerprint(one.model) for one in trained}
        return {"models": models, "items": items_digest(settings), "settings": attrs.asdict(settings)}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line: the split and the folder."""
        return f"skills of the {self._options().split} split of every trained model -> {self._folder}"

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Measure every model and its starting model, plot the curves, write everything to eval.json, print it."""
        trained = self._trained_models(artifacts)
        settings = self._settings(trained)
        selected = Layer(origin="stage", values={"backend": self._options().backend})
        inference = InferenceComposition(self.plugins, [selected]).inference
        api.activate(self.plugins, inference.backend, self.say)
        starts = [start for one in trained if (start := one.start(self.workspace))]
        names = {one.model: one.name for one in (*starts, *trained)}
        reports = {model: self._report(name, model, inference, settings) for model, name in names.items()}
        effects = stage_effects(self.plugins, self.workspace, trained, reports, settings.skills_seed)
        base = [one.model for one in trained if one.name in BASE]
        conversations = sample_conversations(self.plugins, self._open(base[-1], inference), settings)
        pictures = plot_curves(trained, BASE, self._folder, self.say)
        values = {
            "reports": list(reports.values()), "moved": effects, "pictures": pictures,
            "samples": [[{"role": role, "content": text} for role, text in turns] for turns in conversations],
        }  # fmt: skip
        write_text(self._folder / "eval.json", json.dumps(values, indent=1, ensure_ascii=False))
        print_reports([reports[model] for model in base], stderr=True)
        print_stage_effects(effects, [one.name for one in trained])
        for turns in conversations:
            self.say("\n" + "\n".join(f"{role + ':':<11}{text}" for role, text in turns))
        self.say(f"\ncurves: {', '.join(pictures)}")
        return StageResult({"report": self._folder / "eval.json"}, self._summary(trained, reports))

    def _report(self, name: str, model: Path, inference: Inference, settings: EvalSettings) -> dict[str, Any]:
        """The report of a model: the saved one if nothing has changed, otherwise a new one, which is saved."""
        opened = self._open(model, inference)
        if saved := report.saved_report(report.conditions_of(name, opened, inference, settings)):
            self.say(f"{name}: {model.parent.name} is unchanged, so its saved report is used")
            return saved
        self.say(f"{name}: measuring {model.parent.name}")
        new = report.evaluate(self.plugins, name, opened, inference, settings, self.workspace, self.say)
        report.save(new, "")
        return new

    def _open(self, model: Path, inference: Inference) -> TextModel:
        from mm.runtime.generation import text_model

        return text_model.load(self.plugins, str(model), self.workspace, inference)

    def _trained_models(self, artifacts: Mapping[str, Path]) -> list[TrainedModel]:
        """The models of all training stages, those of `BASE` first."""
        models = {name.removeprefix("run:"): path for name, path in artifacts.items() if name.startswith("run:")}
        stages = sorted(models, key=lambda stage: BASE.index(stage) if stage in BASE else len(BASE))
        return [TrainedModel.of(models[stage], stage) for stage in stages]

    def _settings(self, trained: Sequence[TrainedModel]) -> EvalSettings:
        options = self._options()
        # the corpus seed of sft is preferred to that of other stages: pretraining may have had other data
        seeds = [one.seed() for one in sorted(trained, key=lambda one: one.name != BASE[-1])]
        seed = next((s for s in (options.skills_seed, *seeds) if s is not None), 0)
        return EvalSettings(skills=True, split=options.split, skills_seed=seed, limit=options.limit)

    def _summary(self, trained: Sequence[TrainedModel], reports: Mapping[Path, dict[str, Any]]) -> str:
        skills = {one.name: reports[one.model]["skills"] for one in trained}
        shares = {name: sum(s["right"] for s in rows) / max(1, sum(s["total"] for s in rows)) for name, rows in skills.items()}
        listed = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        return f"share of all items right: {listed}; {self._folder / 'eval.json'}"

    @property
    def _folder(self) -> Path:
        return self.workspace.path / "reports"

    def _options(self) -> EvalOptions:
        return _OPTIONS.read(self.layers)
