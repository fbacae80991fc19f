"""The stage class that trains with the algorithm named in its record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from mm.contracts import Stage, StageResult
from mm.core.config.autoselect import choose
from mm.core.config.composition import SELECT, TRAIN, Composition, Resolved
from mm.core.config.sections import section_of
from mm.core.errors import Interrupted, MMError
from mm.core.layers import Layer
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, ArchitectureSpec, RewardSpec, StageSpec, ToolSpec
from mm.core.say import is_main, silent
from mm.core.workspace import RunFolder, checkpoints, write_text
from mm.runtime.data.corpus import open_source
from mm.runtime.data.sources import source_sections
from mm.runtime.hubs.fetching import NotDownloaded
from mm.runtime.models.storage import fingerprint
from mm.runtime.runs import api
from mm.runtime.runs.attempt import attempt
from mm.runtime.runs.ledger import LEDGER, POLL_SECONDS, Ledger, digest
from mm.runtime.runs.plan import Plan
from mm.runtime.runs.plan_stages import STAND_IN
from mm.runtime.runs.speed import has_speeds, training_seconds
from mm.runtime.text.tokenizer import DEFAULT_FOLDER

# the options that the stage sets itself
_FIXED = ("algo", "from", "run", "tokenizer")
# what a stage does with its run
_NEW, _RESUMED, _FINISHED = "new", "resumed", "finished"


class TrainStage(Stage):
    """Trains in a run of its own, starting from the model, or for pretraining the tokenizer, of an earlier stage."""

    every_rank = True

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """The options of a training with this algorithm, those of every source, those of every architecture if the stage makes a
        new model, and those of every reward and tool if it draws completions."""
        algorithm = plugins.get(AlgorithmSpec, spec.algorithm)
        # a bare --preset applies to the stage that makes the model, not to those that continue it
        fixed = {*_FIXED} if algorithm.new_model else {*_FIXED, "arch", "preset"}
        composition = Composition(plugins, [Layer(origin="stage", values={"algo": spec.algorithm, **spec.defaults})])
        # a line or a file may choose other parts than the defaults
        kinds = [ArchitectureSpec] * bool(algorithm.new_model) + [RewardSpec, ToolSpec] * bool(composition.rollout)
        parts = [section_of(part) for kind in kinds for part in plugins.specs(kind) if part.config]
        options = {o.key: o for section in (*composition.sections, *source_sections(plugins), *parts) for o in section.options}
        return [option for key, option in options.items() if key not in fixed]

    def check(self) -> None:
        """Raise UsageError if an option is invalid."""
        self._composition({}).check()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The resolved settings, the digests of the rows, and the fingerprints of the model or tokenizer to start from and of
        other models that are used, such as the teacher."""
        run = self._resolve(artifacts).run
        values, kind = run.values(), run.needs.data
        names = (*run.select.data, *run.train.eval_data)
        digests = [open_source(self.plugins, name, kind, run.parts).digest() for name in names]
        models = [artifacts[self.spec.needs[0]], *self._artifact_settings(artifacts).values()]
        # logging, saving and the backend do not change the result of a training; the options that end it do
        ending = (*api.STOPPING, *(["eval_interval"] if run.train.patience else []))
        ignored = {o.key for o in run.options if o.info.on_resume} - set(ending) | set(_FIXED)
        return {**{k: v for k, v in values.items() if k not in ignored}, "data": digests, "start": [*map(fingerprint, models)]}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """The plan of the training; a few words if a model or tokenizer that it needs does not exist yet."""
        missing = [need for need in self.spec.needs if need not in artifacts or (artifacts[need] / STAND_IN).exists()]
        if unknown := [need for need in missing if need not in artifacts and need != "tokenizer"]:
            return f"mm train --algo {self.spec.algorithm}, from {', '.join(unknown)} once that exists"
        composition = self._composition({"tokenizer": DEFAULT_FOLDER, **artifacts})
        measure = self.calibrates > 0
        limit = self.calibrates or math.inf
        try:
            plan = api.plan(composition, self.workspace, say=silent, calibrate=measure, limit=limit, brief=True)
        except NotDownloaded as error:
            return f"mm train --algo {self.spec.algorithm}, once this is there: {error.plan}"
        if not missing:
            return plan
        short = f"mm train --algo {self.spec.algorithm}, from {', '.join(missing)} once that exists: {plan.summary}"
        return Plan.of(short, plan.values, plan.model, plan.summary)

    def seconds(self, artifacts: Mapping[str, Path]) -> float | None:
        """The time judged by earlier runs, see `training_seconds`. None if the data is bad, which `run` reports."""
        if not has_speeds(self.workspace):  # a plan reads all rows
            return None
        with suppress(MMError):
            plan = self.plan(artifacts)
            if isinstance(plan, Plan):
                values, run = plan.values, self._resolve(artifacts).run
                known: float | None = values["seconds"]
                tokens = values["tokens_per_step"]
                return known or training_seconds(self.plugins, run, values["steps"], tokens, self.workspace)
        return None

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Train. If this stage has started a run with the same inputs before, that run is resumed; if it has been finished
        with `mm train --resume` meanwhile, it is used."""
        inputs = digest(self.inputs(artifacts))
        decided = self._decide(inputs, artifacts) if is_main() else self._decided(inputs)
        if decided is None:
            return StageResult({})
        run, what = decided
        if what == _NEW:
            self._train(run.name, self._composition(artifacts), resume=False)
        elif what == _RESUMED:
            self._train(run.name, Composition(self.plugins, [*map(_resumable, self.layers)]), resume=True)
        else:
            self.say(f"run {run.name} was finished meanwhile: it is used")
        if is_main():
            self._note.unlink()
        manifest = run.manifest
        summary = f"{run.name}: {manifest['parameters']:,} parameters, {manifest['tokens']:,} tokens"
        return StageResult({self.spec.gives[0]: run.model}, summary)

    def _train(self, name: str, composition: Composition, *, resume: bool) -> None:
        run_layer = Layer(origin=f"stage {self.spec.name}", values={"run": name})
        try:
            api.start(composition.having([run_layer, *composition.layers]), self.workspace, resume=resume, say=self.say)
        except Interrupted as error:  # 'mm run' resumes this training and then runs the later stages
            raise Interrupted(error.message, error.signal_number, again="the same 'mm run' line") from None

    def _decide(self, inputs: str, artifacts: Mapping[str, Path]) -> tuple[RunFolder, str]:
        """The run of this stage, and what is done with it; noted for a later call and for the other ranks."""
        run = self._started_run(inputs)
        if run is None:
            run, what = self.workspace.run(self._resolve(artifacts).run.select.run), _NEW
        else:
            what = _FINISHED if run.manifest["state"] == "finished" else _RESUMED
        note = {"inputs": inputs, "run": run.name, **({"attempt": attempt(), "what": what} if attempt() else {})}
        write_text(self._note, json.dumps(note))
        return run, what

    def _decided(self, inputs: str) -> tuple[RunFolder, str] | None:
        """As `_decide`, on the other ranks: what the main one has noted. None if it has finished the stage without them."""
        ledger = Ledger(self.workspace.cache / LEDGER)
        while not ledger.by_this_attempt(self.spec.name, inputs):
            with suppress(OSError):
                note = json.loads(self._note.read_text(encoding="utf-8"))
                if (note["inputs"], note.get("attempt")) == (inputs, attempt()):
                    return self.workspace.run(note["run"]), note["what"]
            time.sleep(POLL_SECONDS)
        return None

    @property
    def _note(self) -> Path:
        """The file in which the stage notes the run that it has started, until that run is finished."""
        return self.workspace.cache / f"started-{self.spec.name}.json"

    def _started_run(self, inputs: str) -> RunFolder | None:
        """The run that this stage has started with these inputs, if it is finished or has a checkpoint to resume from."""
        note = json.loads(self._note.read_text(encoding="utf-8")) if self._note.exists() else {}
        if note.get("inputs") != inputs:
            return None
        run = self.workspace.run(note["run"])
        if run.manifest.get("state") == "finished":
            return run if (run.model / "config.json").exists() else None
        return run if run.manifest and checkpoints(run.checkpoints) else None

    def _composition(self, artifacts: Mapping[str, Path]) -> Composition:
        makes_model = self.plugins.get(AlgorithmSpec, self.spec.algorithm).new_model is not None
        key = "tokenizer" if makes_model else "from"
        fixed = {"algo": self.spec.algorithm}
        if self.spec.needs[0] in artifacts:
            fixed[key] = str(artifacts[self.spec.needs[0]])
        from_artifacts = {name: str(path) for name, path in self._artifact_settings(artifacts).items()}
        defaults = Layer(origin=f"defaults of stage {self.spec.name}", values={**self.spec.defaults, **from_artifacts})
        return Composition(self.plugins, [Layer(origin=f"stage {self.spec.name}", values=fixed), *self.layers, defaults])

    def _artifact_settings(self, artifacts: Mapping[str, Path]) -> dict[str, Path]:
        """The settings that the record fills with artifacts (`takes`, such as the teacher), unless the user has set them."""
        given = {key for layer in self.layers for key in layer.values}
        first = {k: next((artifacts[n] for n in names if n in artifacts), None) for k, names in self.spec.takes.items()}
        return {key: path for key, path in first.items() if path is not None and key not in given}

    def _resolve(self, artifacts: Mapping[str, Path]) -> Resolved:
        composition = choose(self._composition(artifacts), self.workspace)
        name = Layer(origin="chosen", values={"run": api.free_name(composition, self.workspace)})
        return api.new_run(composition.having([name, *composition.layers]), self.workspace, silent)


def _resumable(layer: Layer) -> Layer:
    """The layer with only those options that may change on a resume."""
    allowed = {o.key for o in (*SELECT.options, *TRAIN.options) if o.info.on_resume}
    return attrs.evolve(layer, values={k: v for k, v in layer.values.items() if k in allowed})
