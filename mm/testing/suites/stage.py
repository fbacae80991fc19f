"""The checks that every stage must pass."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mm.core.errors import UsageError, close_match
from mm.core.layers import Layer
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.workspace import Workspace
from mm.runtime.runs.stage import Stage, StageResult
from mm.testing.suites.check import Skip
from mm.testing.suites.option_values import other_values
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

_LONGEST = 60  # seconds that a stage may say it takes, to be run by a check
_AGAIN = 5  # seconds that a stage may have taken, to be run again with other values of its options
_TRIED = 2  # of these values, for each option


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
        self._took = float("inf")  # seconds of `check_run`

    @cached_property
    def artifacts(self) -> dict[str, Path]:
        """The artifacts that the stage needs. Raises Skip if one of them cannot be made here."""
        found = {}
        for name in self.record.needs:
            path = self._artifact(name)
            if path is None:
                raise Skip(f"it needs {name}, which cannot be made here")
            found[name] = path
        return found

    def make(self, **values: Any) -> Stage:
        """A new stage with the defaults of its options, or with these values."""
        values = ({"backend": "cpu"} if "backend" in self._keys() else {}) | values
        layers = [Layer(origin="check", values=values)]
        stage: Stage = self.record.load()(self.record, self.plugins, Workspace(self.folder), layers, lambda line: None)
        return stage

    def _options(self) -> Sequence[Option]:
        options: Sequence[Option] = self.record.load().options(self.record, self.plugins)
        wrong = next((option for option in options if not isinstance(option, Option)), None)
        assert wrong is None, f"options gives a {type(wrong).__name__}, not an Option"
        return options

    def _keys(self) -> list[str]:
        return [option.key for option in self._options()]

    def _inputs(self, **values: Any) -> Mapping[str, Any]:
        stage = self.make(**values)
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

    @about("summary")
    def check_needs(self) -> str:
        """Another stage gives each artifact that it needs, and one at least of those that a setting takes."""
        stages = [stage for stage in self.plugins.specs(StageSpec) if stage.name != self.record.name]
        given = {name for stage in stages for name in stage.gives}
        for names in (*((need,) for need in self.record.needs), *self.record.takes.values()):
            told = f"no stage gives {' or '.join(names)}.{close_match(names[0], given)} Known: {', '.join(sorted(given))}"
            assert given & {*names}, f"{told} (of an installed package, or one named with -p)"
        return ", ".join(self.record.needs)

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
        began = time.monotonic()
        try:
            result = stage.run(self.artifacts)
        except UsageError as error:
            raise Skip(f"it needs settings: {error}") from None
        took = time.monotonic() - began
        assert isinstance(result, StageResult), f"run returns a {type(result).__name__}, not mm.contracts.StageResult"
        missing = sorted(set(self.record.gives) ^ set(result.artifacts))
        assert not missing, f"run makes {sorted(result.artifacts)}, and the record gives {sorted(self.record.gives)}"
        absent = [name for name, path in result.artifacts.items() if not Path(path).exists()]
        assert not absent, f"{absent[0]} is {result.artifacts[absent[0]]}, and does not exist after run"
        assert "\n" not in result.summary, "the summary must be one line"
        assert self._inputs() == inputs, "run changes its own inputs: the stage would never be up to date"
        self._took = took
        return result.summary

    @about("inputs")
    def check_inputs_and_options(self) -> str:
        """`inputs` differ where another value of an option gives another output. The stage is run with values that `inputs` does
        not show: with such a value it would be skipped as up to date."""
        self.require("check_run")
        if self.record.algorithm:
            raise Skip("it trains: check its algorithm, and try it with mm run")
        own, unseen = self._inputs(), dict[Option, list[Any]]()
        for option in self._options():
            values = other_values(option, option.default)
            unseen[option] = [value for value in values if self._inputs_or_none(option, value) == own][:_TRIED]
        unseen = {option: values for option, values in unseen.items() if values}
        flags = ", ".join(option.flag for option in unseen)
        if not unseen:
            return "every option is in inputs"
        if self._took > _AGAIN or (output := self._output()) is None or self._output() != output:
            raise Skip(f"{flags} changes no inputs: it is not known if the output depends on it")
        for option, value in ((option, value) for option, values in unseen.items() for value in values):
            told = f"{option.flag} {value} gives another output and the same inputs: the stage would be skipped as up to date"
            assert self._output(**{option.key: value}) in (None, output), told
        return f"no other output with {flags}"

    def _inputs_or_none(self, option: Option, value: Any) -> Mapping[str, Any] | None:
        """The inputs with another value of an option; None if the stage does not take it."""
        try:
            return self._inputs(**{option.key: value})
        except Exception:
            return None

    def _output(self, **values: Any) -> dict[str, str] | None:
        """Path -> hash of each file that the stage makes; None if it does not run with these values."""
        try:
            made = self.make(**values).run(self.artifacts).artifacts.values()
        except Exception:
            return None
        files = [file for path in map(Path, made) for file in (path, *path.rglob("*")) if file.is_file()]
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
