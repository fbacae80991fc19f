"""The checks that every stage must pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mm.core.errors import UsageError
from mm.core.layers import Layer
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.workspace import Workspace
from mm.runtime.runs.stage import Stage, StageResult
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

_LONGEST = 60  # seconds that a stage may say it takes, to be run by a check


class StageSuite(Suite):
    """The checks of a stage, in the workspace `folder`. `artifact(name)` makes an artifact that the stage needs and returns its
    path, None if nothing tells how."""

    contract: ClassVar[type | None] = Stage

    def __init__(
        self, spec: StageSpec, plugins: PluginManager, folder: Path, artifact: Callable[[str], Path | None],
        module: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, module)
        self.record, self.plugins, self.folder, self._artifact = spec, plugins, folder, artifact

    @cached_property
    def artifacts(self) -> dict[str, Path]:
        """The artifacts that the stage needs. Raises Skip if a part of it cannot be made here."""
        found = {}
        for name in self.record.needs:
            path = self._artifact(name)
            if path is None:
                raise Skip(f"it needs {name}, which cannot be made here")
            found[name] = path
        return found

    def make(self) -> Stage:
        """A new stage with the defaults of its options."""
        layers = [Layer(origin="check", values={"backend": "cpu"} if "backend" in self._keys() else {})]
        stage: Stage = self.record.load()(self.record, self.plugins, Workspace(self.folder), layers, lambda line: None)
        return stage

    def _keys(self) -> list[str]:
        options = self.record.load().options(self.record, self.plugins)
        wrong = next((option for option in options if not isinstance(option, Option)), None)
        assert wrong is None, f"options gives a {type(wrong).__name__}, not an Option"
        return [option.key for option in options]

    def _inputs(self) -> Mapping[str, Any]:
        stage = self.make()
        try:
            stage.check()
            return stage.inputs(self.artifacts)
        except UsageError as error:
            raise Skip(f"it needs settings: {error}") from None

    @about("options", "check")
    def check_options_and_check(self) -> str:
        """`options` gives options, each with a name of its own, and `check` accepts their defaults."""
        keys = self._keys()
        double = sorted({key for key in keys if keys.count(key) > 1})
        assert not double, f"options has {', '.join(double)} twice"
        try:
            self.make().check()
        except UsageError as error:
            raise Skip(f"it needs settings: {error}") from None
        return f"{len(keys)} options"

    @about("inputs")
    def check_inputs(self) -> str:
        """`inputs` are JSON values, and the same for another instance: otherwise the stage runs again each time."""
        found = self._inputs()
        assert isinstance(found, Mapping), f"inputs returns a {type(found).__name__}, not a mapping"
        try:
            json.dumps(found, sort_keys=True)
        except TypeError as error:
            raise AssertionError(f"inputs are not JSON values: {error}") from None
        assert self._inputs() == found, f"inputs are {found}, and then {self._inputs()}"
        return ", ".join(found) or "none"

    @about("plan")
    def check_plan(self) -> str:
        """`plan` describes in text what `run` would do, and writes nothing."""
        self.require("check_inputs")
        self._inputs()
        before = _files(self.folder)
        try:
            text = self.make().plan(self.artifacts)
        except UsageError as error:
            raise Skip(f"it needs settings: {error}") from None
        assert isinstance(text, str) and text.strip(), f"plan returns {text!r}"
        written = sorted(_files(self.folder) - before)
        assert not written, f"plan writes {written[0]}"
        return text.partition("\n")[0]

    @about("run")
    def check_run(self) -> str:
        """`run` makes what the record's `gives` names, and does not change its own `inputs`."""
        self.require("check_plan")
        if self.record.algorithm:
            raise Skip("it trains: check its algorithm, and try it with mm run")
        inputs, stage = self._inputs(), self.make()
        seconds = stage.seconds(self.artifacts)
        if seconds is not None and seconds > _LONGEST:
            raise Skip(f"it says that it takes {seconds:.0f} s")
        try:
            result = stage.run(self.artifacts)
        except UsageError as error:
            raise Skip(f"it needs settings: {error}") from None
        assert isinstance(result, StageResult), f"run returns a {type(result).__name__}, not mm.contracts.StageResult"
        missing = sorted(set(self.record.gives) ^ set(result.artifacts))
        assert not missing, f"run makes {sorted(result.artifacts)}, and the record gives {sorted(self.record.gives)}"
        absent = [name for name, path in result.artifacts.items() if not Path(path).exists()]
        assert not absent, f"{absent[0]} is {result.artifacts[absent[0]]}, and does not exist after run"
        assert "\n" not in result.summary, "the summary must be one line"
        assert self._inputs() == inputs, "run changes its own inputs: the stage would never be up to date"
        return result.summary


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
