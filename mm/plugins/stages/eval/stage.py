"""The evaluation stage: the skills before and after fine-tuning, the losses as a picture, a short conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from attrs.validators import ge, optional

from mm.core import api
from mm.core.contracts import Stage, StageResult
from mm.core.inference import Inference, resolve_inference
from mm.core.layers import Layer
from mm.core.options import Option, option, options_of
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.resolve import read_config
from mm.core.workspace import RunFolder, fingerprint, write_text
from mm.plugins.commands.runs.plot import plot_runs
from mm.plugins.evaluations import report
from mm.plugins.evaluations.measure import player_of
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.evaluations.table import print_reports
from mm.plugins.sources.skills import corpus, evaluation

if TYPE_CHECKING:
    from mm.core.training.generation import TextModel

_MODELS = (("run:pretrain", "before"), ("run:sft", "after"))
_SAMPLES = ("facts", "tool", "tool_answer", "agent", "reason", "polite", "chat")


@frozen(kw_only=True)
class EvalOptions:
    """What is measured."""

    split: str = option("test", help="Items that are asked.", choices=("dev", "test"))
    skills_seed: int = option(0, help="Seed of the skills corpus that the model learned from.")
    limit: int | None = option(None, help="Most items that are asked.", validator=optional(ge(1)))
    backend: str = option("auto", help="Chip.")


class Evaluate(Stage):
    """Writes `reports/eval.json` and `reports/loss.png`, and prints the table and the samples."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> list[Option]:
        """The options above."""
        return options_of(EvalOptions, section="eval")

    def check(self) -> None:
        """The options are well typed."""
        self._options()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """Both models and the options."""
        options = self._options()
        models = {name: fingerprint(artifacts[name]) for name, _ in _MODELS}
        return {"models": models, "split": options.split, "seed": options.skills_seed, "limit": options.limit}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line."""
        return f"skills of the {self._options().split} split before and after sft -> {self._folder()}"

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Measure, plot, show."""
        options = self._options()
        how, _ = resolve_inference(self.plugins, [Layer(origin="stage", values={"backend": options.backend})])
        api.activate(self.plugins, how.backend, self.say)
        settings = EvalSettings(skills=True, split=options.split, skills_seed=options.skills_seed, limit=options.limit)
        reports, samples = [], []
        for artifact, label in _MODELS:
            opened = self._open(artifacts[artifact], how)
            found = report.evaluate(self.plugins, label, opened, how, settings, self.workspace, self.say)
            report.keep(found, "")
            reports.append(found)
            if label == "after":
                samples = _samples(self.plugins, opened, settings)
        self._write(artifacts, reports, samples)
        return StageResult({"report": self._folder() / "eval.json"}, self._summary(reports))

    def _open(self, model: Path, how: Inference) -> TextModel:
        from mm.core.training import generation

        return generation.load(self.plugins, str(model), self.workspace, how)

    def _write(
        self, artifacts: Mapping[str, Path], reports: list[dict[str, Any]], samples: list[list[tuple[str, str]]]
    ) -> None:
        runs = [RunFolder(artifacts[name].parent) for name, _ in _MODELS]
        plot_runs(runs, ["loss"], self._folder() / "loss.png", apart=True)
        values = {
            "reports": reports,
            "samples": [[{"role": role, "content": text} for role, text in turns] for turns in samples],
        }
        write_text(self._folder() / "eval.json", json.dumps(values, indent=1, ensure_ascii=False))
        print_reports(reports, stderr=True)
        for turns in samples:
            self.say("\n" + "\n".join(f"{role + ':':<11}{text}" for role, text in turns))
        self.say(f"\nlosses: {self._folder() / 'loss.png'}")

    def _summary(self, reports: list[dict[str, Any]]) -> str:
        shares = [sum(f["right"] for f in r["skills"]) / max(1, sum(f["total"] for f in r["skills"])) for r in reports]
        return f"all items right {shares[0]:.2f} before, {shares[1]:.2f} after; {self._folder() / 'eval.json'}"

    def _folder(self) -> Path:
        return self.workspace.path / "reports"

    def _options(self) -> EvalOptions:
        return read_config(EvalOptions, self.layers, "eval")  # type: ignore[no-any-return]


def _samples(plugins: PluginManager, opened: TextModel, settings: EvalSettings) -> list[list[tuple[str, str]]]:
    items = corpus.generate(settings.skills_seed)[settings.split]
    shown = [next(i for i in items if i["suite"] == suite) for suite in _SAMPLES]
    return [_conversation(answer) for answer in evaluation.answers(player_of(plugins, opened), shown, seed=0)]


def _conversation(answer: evaluation.Answer) -> list[tuple[str, str]]:
    """The turns that can be read, then the model's: a call is shown as the template writes it."""
    turns = [t for t in answer.item["conversations"] if t["role"] != "system"]
    return [*((t["role"], t["content"] or f"calls {t.get('tool_calls', '')}") for t in turns), ("assistant", answer.text)]
