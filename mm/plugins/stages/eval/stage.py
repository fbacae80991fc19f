"""The evaluation stage: the skills before and after fine-tuning, the losses as a picture, a short conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from mm.core import api
from mm.core.choices import choose_backend
from mm.core.contracts import Stage, StageResult
from mm.core.options import Option, option, options_of
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.resolve import read_config
from mm.core.workspace import RunFolder, fingerprint, write_text
from mm.plugins.commands.runs.plot import plot_runs
from mm.plugins.sources.skills import corpus, evaluation

if TYPE_CHECKING:
    from mm.plugins.sources.skills.evaluation import Figure

_MODELS = (("run:pretrain", "before"), ("run:sft", "after"))
_SAMPLES = ("facts", "tool", "tool_answer", "reason", "polite", "chat")


@frozen(kw_only=True)
class EvalOptions:
    """What is measured."""

    split: str = option("test", help="Items that are asked.", choices=("dev", "test"))
    skills_seed: int = option(0, help="Seed of the skills corpus that the model learned from.")
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
        return {"models": models, "split": options.split, "seed": options.skills_seed}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line."""
        return f"skills of the {self._options().split} split before and after sft -> {self._folder()}"

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Measure, plot, show."""
        options = self._options()
        items = corpus.generate(options.skills_seed)[options.split]
        figures, samples = {}, []
        for artifact, label in _MODELS:
            engine, tokenizer = self._engine(artifacts[artifact])
            figures[label] = evaluation.evaluate(engine, tokenizer, items)
            if label == "after":
                shown = [next(i for i in items if i["suite"] == suite) for suite in _SAMPLES]
                texts = evaluation.complete(engine, tokenizer, shown, seed=0)
                samples = [_conversation(item, text) for item, text in zip(shown, texts, strict=True)]
        self._report(options, artifacts, figures, samples)
        return StageResult({"report": self._folder() / "eval.json"}, self._summary(figures))

    def _engine(self, model: Path) -> tuple[Any, Any]:
        name, _ = choose_backend(self.plugins, self._options().backend)
        api.activate(self.plugins, name, self.say)
        from mm.core.training import generation

        loaded = generation.load(self.plugins, str(model), self.workspace, backend=name)
        return loaded.engine, loaded.loaded.tokenizer

    def _report(
        self,
        options: EvalOptions,
        artifacts: Mapping[str, Path],
        figures: dict[str, list[Figure]],
        samples: list[list[tuple[str, str]]],
    ) -> None:
        runs = [RunFolder(artifacts[name].parent) for name, _ in _MODELS]
        plot_runs(runs, ["loss"], self._folder() / "loss.png", apart=True)
        values = {
            "split": options.split,
            "runs": [run.name for run in runs],
            "figures": {label: [_plain(f) for f in found] for label, found in figures.items()},
            "samples": [[{"role": role, "content": text} for role, text in turns] for turns in samples],
        }
        write_text(self._folder() / "eval.json", json.dumps(values, indent=1, ensure_ascii=False))
        _print_table(options.split, figures)
        for turns in samples:
            self.say("\n" + "\n".join(f"{role + ':':<11}{text}" for role, text in turns))
        self.say(f"\nlosses: {self._folder() / 'loss.png'}")

    def _summary(self, figures: dict[str, list[Figure]]) -> str:
        def share(label: str) -> float:
            return sum(f.right for f in figures[label]) / max(1, sum(f.total for f in figures[label]))

        return f"all items right {share('before'):.2f} before, {share('after'):.2f} after; {self._folder() / 'eval.json'}"

    def _folder(self) -> Path:
        return self.workspace.path / "reports"

    def _options(self) -> EvalOptions:
        return read_config(EvalOptions, self.layers, "eval")  # type: ignore[no-any-return]


def _conversation(item: Mapping[str, Any], answer: str) -> list[tuple[str, str]]:
    """The turns that can be read, then the model's: a call is shown as the template writes it."""
    turns = [t for t in item["conversations"] if t["role"] != "system"]
    return [*((t["role"], t["content"] or f"calls {t.get('tool_calls', '')}") for t in turns), ("assistant", answer)]


def _plain(figure: Figure) -> dict[str, Any]:
    low, high = figure.interval
    return {
        "suite": figure.suite, "tier": figure.tier, "right": figure.right, "total": figure.total,
        "share": round(figure.share, 4), "low": round(low, 4), "high": round(high, 4),
    }  # fmt: skip


def _print_table(split: str, figures: dict[str, list[Figure]]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"held-out skills, {split} split: share right [95% interval]"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("suite", "tier", "items", *figures):
        table.add_column(column, justify="left" if column in ("suite", "tier") else "right")
    found = {label: evaluation.by_suite(listed) for label, listed in figures.items()}
    for suite, tiers in next(iter(found.values())).items():
        for tier, figure in tiers.items():
            cells = [_cell(found[label][suite][tier]) for label in figures]
            table.add_row(suite, f"{tier} (recall)" if tier == "seen" else tier, str(figure.total), *cells)
    Console(stderr=True).print(table)


def _cell(figure: Figure) -> str:
    low, high = figure.interval
    return f"{figure.share:.2f} [{low:.2f}, {high:.2f}]"
