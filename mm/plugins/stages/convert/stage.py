"""The stage that exports the model of `sft`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm.contracts import Stage, StageResult
from mm.runtime.models.finding import run_of
from mm.runtime.models.storage import fingerprint
from mm.runtime.runs import api


class Convert(Stage):
    """Writes `exports/RUN`, named after the model's run."""

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The model's fingerprint and the options."""
        options = self.config
        return {"model": fingerprint(artifacts["run:sft"]), "to": options.to, "dtype": options.export_dtype}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line: the run and the folder. A model that is still to be trained is in no run."""
        run = run_of(artifacts["run:sft"]) if "run:sft" in artifacts else None
        return f"{run.name if run else 'the run of sft'} -> {self.workspace.path / 'exports'}"

    def seconds(self, artifacts: Mapping[str, Path]) -> float:
        """A few seconds."""
        return 5.0

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Export the model; the converter reads the folder back and compares it."""
        api.activate(self.plugins, "cpu", self.say)
        from mm.runtime.models.convert import convert

        options, model = self.config, artifacts["run:sft"]
        out = self.workspace.path / "exports" / model.parent.name
        convert(
            self.plugins, str(model), out, to=options.to or None, dtype=options.export_dtype, workspace=self.workspace, force=True
        )
        return StageResult({"export": out}, f"{out}, loadable with transformers")
