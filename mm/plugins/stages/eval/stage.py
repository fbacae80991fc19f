"""The evaluation stage: the skills of every trained model, the effect of each training, its curves, sample conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.contracts import Stage, StageResult
from mm.core.layers import Layer
from mm.core.workspace import write_text
from mm.plugins.evaluations import report
from mm.plugins.evaluations.measure import items_count, items_digest
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.evaluations.stage_effects import TrainedModel, stage_effects
from mm.plugins.stages.eval.report_text import full_report, summary
from mm.plugins.stages.eval.sample_conversations import live_conversations, sample_answers
from mm.plugins.stages.eval.training_curves import plot_curves
from mm.runtime.models.load_settings import Inference, InferenceComposition
from mm.runtime.models.storage import fingerprint
from mm.runtime.runs import api
from mm.runtime.runs.speed import tokens_per_second

if TYPE_CHECKING:
    from mm.runtime.generation.text_model import TextModel

# the stages whose losses share a picture; the conversations are with the model of the last one
BASE = ("pretrain", "sft")
# answering a question takes about as long as training on so many tokens (measured in the demo)
_TRAINED_TOKENS = 60


class Evaluate(Stage):
    """Writes `reports/eval.json`, `reports/report.txt` and the plots; `mm run` ends with a summary."""

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The fingerprints of the models, the digest of the items, and the settings of the evaluation."""
        trained = self._trained_models(artifacts)
        settings = self._settings(trained)
        models = {one.name: fingerprint(one.model) for one in trained}
        return {"models": models, "items": items_digest(settings), "settings": attrs.asdict(settings)}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line: the split and the folder."""
        return f"skills of the {self.config.split} split of every trained model -> {self._folder}"

    def seconds(self, artifacts: Mapping[str, Path]) -> float | None:
        """The number of questions to all models, judged by the speed of the trainings."""
        speed, trained = tokens_per_second(self.plugins, self.workspace), self._trained_models(artifacts)
        return speed and len(trained) * items_count(self._settings(trained)) * _TRAINED_TOKENS / speed

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Measure every model and its starting model, plot the curves, write the report."""
        trained = self._trained_models(artifacts)
        settings = self._settings(trained)
        selected = Layer(origin="stage", values={"backend": self.config.backend})
        inference = InferenceComposition(self.plugins, [selected]).inference
        api.activate(self.plugins, inference.backend, self.say)
        starts = [start for one in trained if (start := one.start(self.workspace))]
        names = {one.model: one.name for one in (*starts, *trained)}
        reports = {model: self._report(name, model, inference, settings) for model, name in names.items()}
        effects = stage_effects(self.plugins, self.workspace, trained, reports, settings.skills_seed)
        base = [one.model for one in trained if one.name in BASE]
        model, speaker = self._open(base[-1], inference), names[base[-1]]
        values = {
            "reports": list(reports.values()), "moved": effects, "speaker": speaker,
            "conversations": live_conversations(self.plugins, model, settings),
            "samples": sample_answers(self.plugins, model, settings),
            "pictures": plot_curves(trained, BASE, self._folder, self.say),
        }  # fmt: skip
        text = self._folder / "report.txt"
        write_text(self._folder / "eval.json", json.dumps(values, indent=1, ensure_ascii=False))
        write_text(text, full_report(values, [one.name for one in trained]))
        asked = sum(share["total"] for share in reports[base[-1]]["skills"])
        line = f"{len(trained)} models, {asked:,} questions each; {text}"
        return StageResult({"report": self._folder / "eval.json"}, line, closing=summary(values, text))

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
        options = self.config
        # the corpus seed of sft is preferred to that of other stages: pretraining may have had other data
        seeds = [one.seed() for one in sorted(trained, key=lambda one: one.name != BASE[-1])]
        seed = next((s for s in (options.skills_seed, *seeds) if s is not None), 0)
        return EvalSettings(skills=True, split=options.split, skills_seed=seed, limit=options.limit)

    @property
    def _folder(self) -> Path:
        return self.workspace.path / "reports"
