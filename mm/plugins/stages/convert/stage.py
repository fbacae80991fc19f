"""The stage that exports the model of `sft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mm.contracts import Stage, StageResult
from mm.core.config.sections import Section
from mm.core.options import Option, option
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.runtime.models.storage import fingerprint
from mm.runtime.runs import api


@frozen(kw_only=True)
class ConvertOptions:
    """The format and the type of the export."""

    to: str = option("", help="Converter; by default the only one whose format can hold the model.")
    export_dtype: str = option("fp32", help="Type of the exported weights.", choices=("fp32", "bf16", "fp16"))


_OPTIONS = Section(name="convert", config=ConvertOptions)


class Convert(Stage):
    """Writes `exports/RUN`, named after the model's run."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """The options of `ConvertOptions`."""
        return _OPTIONS.options

    def check(self) -> None:
        """Raise UsageError if an option is invalid."""
        self._options()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The model's fingerprint and the options."""
        options = self._options()
        return {"model": fingerprint(artifacts["run:sft"]), "to": options.to, "dtype": options.export_dtype}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line: the run and the folder."""
        model = artifacts.get("run:sft")
        return f"{model.parent.name if model else 'the run of sft'} -> {self.workspace.path / 'exports'}"

    def seconds(self, artifacts: Mapping[str, Path]) -> float:
        """A few seconds."""
        return 5.0

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Export the model; the converter reads the folder back and compares it."""
        api.activate(self.plugins, "cpu", self.say)
        from mm.runtime.models.convert import convert

        options, model = self._options(), artifacts["run:sft"]
        out = self.workspace.path / "exports" / model.parent.name
        convert(
            self.plugins, str(model), out, to=options.to or None, dtype=options.export_dtype, workspace=self.workspace, force=True
        )
        return StageResult({"export": out}, f"{out}, loadable with transformers")

    def _options(self) -> ConvertOptions:
        return _OPTIONS.read(self.layers)
