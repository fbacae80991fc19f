"""A stage that trains with the algorithm that its record names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.contracts import Stage, StageResult
from mm.core.config.composition import SELECT, TRAIN, Composition, Resolved
from mm.core.config.sections import section_of
from mm.core.errors import Interrupted
from mm.core.layers import Layer
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, ArchitectureSpec, StageSpec
from mm.core.say import silent
from mm.core.workspace import RunFolder, checkpoints, fingerprint, write_text
from mm.runtime.data.corpus import open_source
from mm.runtime.runs import api
from mm.runtime.runs.pipeline import digest

# the stage decides these
_FIXED = ("algo", "from", "run", "tokenizer")


class TrainStage(Stage):
    """Trains in a run of its own, from the model or the tokenizer that earlier stages gave."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """Those of a training with this algorithm, and of every architecture for a stage that makes a model."""
        algorithm = plugins.get(AlgorithmSpec, spec.algorithm)
        # a bare --preset means the stage that makes the model, not those that continue it
        fixed = {*_FIXED} if algorithm.new_model else {*_FIXED, "arch", "preset"}
        sections = Composition(plugins, [Layer(origin="stage", values={"algo": spec.algorithm, **spec.defaults})]).sections
        models = map(section_of, plugins.specs(ArchitectureSpec)) if algorithm.new_model else ()
        return [o for section in (*sections, *models) for o in section.options if o.key not in fixed]

    def check(self) -> None:
        """The options are well typed."""
        self._composition({}).check()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The resolved settings, the rows, and the model or tokenizer to start from."""
        run = self._resolve(artifacts).run
        values, kind = run.values(), run.needs.data
        digests = [open_source(self.plugins, name, kind).digest() for name in (*run.select.data, *run.train.eval_data)]
        taken = [artifacts[self.spec.needs[0]], *self._taken(artifacts).values()]
        # logging, saving and where it ran do not change what comes out; where it stops does
        ending = (*api.STOPPING, *(["eval_interval"] if run.train.patience else []))
        idle = {o.key for o in run.options if o.info.on_resume} - set(ending) | set(_FIXED)
        return {**{k: v for k, v in values.items() if k not in idle}, "data": digests, "start": [*map(fingerprint, taken)]}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """The plan of the training, as far as what it starts from exists."""
        if any(need not in artifacts for need in self.spec.needs):
            return f"mm train --algo {self.spec.algorithm}, from what {', '.join(self.spec.needs)} will be"
        return api.plan(self._composition(artifacts), self.workspace, say=silent)

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Train; a training of the same inputs that was interrupted is resumed, or taken if it was finished by hand."""
        inputs = digest(self.inputs(artifacts))
        run = self._started(inputs)
        if run is None:
            run = self.workspace.run(self._resolve(artifacts).run.select.run)
            write_text(self._note, json.dumps({"inputs": inputs, "run": run.name}))
            self._train(run.name, self._composition(artifacts), resume=False)
        elif run.manifest["state"] == "finished":
            self.say(f"run {run.name} was finished meanwhile: taken as it is")
        else:
            self._train(run.name, Composition(self.plugins, [*map(_resumable, self.layers)]), resume=True)
        self._note.unlink()
        manifest = run.manifest
        summary = f"{run.name}: {manifest['parameters']:,} parameters, {manifest['tokens']:,} tokens"
        return StageResult({self.spec.gives[0]: run.model}, summary)

    def _train(self, name: str, composition: Composition, *, resume: bool) -> None:
        named = Layer(origin=f"stage {self.spec.name}", values={"run": name})
        try:
            api.start(composition.having([named, *composition.layers]), self.workspace, resume=resume, say=self.say)
        except Interrupted as error:  # the pipeline goes on with it, and with the stages after it
            raise Interrupted(error.message, error.signal_number, again="the same 'mm run' line") from None

    @property
    def _note(self) -> Path:
        return self.workspace.cache / f"started-{self.spec.name}.json"

    def _started(self, inputs: str) -> RunFolder | None:
        """The run of these inputs that this stage has begun: finished since then, or with a checkpoint to go on from."""
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
        taken = {name: str(path) for name, path in self._taken(artifacts).items()}
        defaults = Layer(origin=f"defaults of stage {self.spec.name}", values={**self.spec.defaults, **taken})
        return Composition(self.plugins, [Layer(origin=f"stage {self.spec.name}", values=fixed), *self.layers, defaults])

    def _taken(self, artifacts: Mapping[str, Path]) -> dict[str, Path]:
        """The artifacts that fill settings which the user has left open."""
        given = {key for layer in self.layers for key in layer.values}
        found = {k: next((artifacts[n] for n in names if n in artifacts), None) for k, names in self.spec.takes.items()}
        return {key: path for key, path in found.items() if path is not None and key not in given}

    def _resolve(self, artifacts: Mapping[str, Path]) -> Resolved:
        return api.new_run(self._composition(artifacts), self.workspace, silent)


def _resumable(layer: Layer) -> Layer:
    """A layer's options that a resume takes."""
    allowed = {o.key for o in (*SELECT.options, *TRAIN.options) if o.info.on_resume}
    return attrs.evolve(layer, values={k: v for k, v in layer.values.items() if k in allowed})
