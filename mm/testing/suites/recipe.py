"""The checks that every recipe must pass."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from mm.core.config.composition import Composition
from mm.core.config.unknown import check_keys
from mm.core.errors import UsageError, close_match
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import RecipeSpec, StageSpec
from mm.core.say import silent
from mm.core.workspace import Workspace
from mm.runtime.runs import api
from mm.runtime.runs.recipes import config_layer, tables_of
from mm.runtime.text.wording import count_text
from mm.testing.suites.check import Mistake, Skip
from mm.testing.suites.suite import Suite
from mm.testing.tiny import tiny_rows


class RecipeSuite(Suite):
    """The checks of a recipe, whose record one of `plugins` has yielded."""

    declarations: ClassVar[tuple[str, ...]] = ("check_file",)
    first: ClassVar[tuple[str, ...]] = ("check_target", "check_file")

    def __init__(self, spec: RecipeSpec, plugins: PluginManager, module: str | None = None) -> None:
        super().__init__(spec, module)
        self.record, self.plugins = spec, plugins

    def check_file(self) -> str:
        """The target is the path of a TOML file with tables."""
        path = self.record.load()
        assert isinstance(path, Path), f"{self.record.target} is a {type(path).__name__}, not a pathlib.Path"
        assert path.is_file(), f"{path} does not exist: is it package data?"
        try:
            tables = tables_of(self.record)
        except tomllib.TOMLDecodeError as error:
            raise Mistake(f"not TOML: {error}", f"{path}:1") from None
        assert tables, f"{path} has no table"
        return ", ".join(tables)

    def check_trainings(self) -> str:
        """Every table of an algorithm has only settings that a training with it has, with valid values, and gives a plan on a few
        rows of the algorithm's kind, with a small new model if the table names none."""
        planned = []
        for table in tables_of(self.record):
            layer = config_layer(self.plugins, f"{self.record.name}:{table}")
            if "algo" in layer.values:
                with self._placed(table):
                    planned.append(f"{table} {self._plan(layer)}")
        if not planned:
            raise Skip("no table is called by the name of an algorithm or of a stage that trains")
        return f"planned on a few rows: {', '.join(planned)}"

    def check_stages(self) -> str:
        """Every table of another stage has only options of that stage, with valid values."""
        path: Path = self.record.load()
        content, checked = tomllib.loads(path.read_text(encoding="utf-8")), []
        stages = {name: spec for spec in self.plugins.specs(StageSpec) for name in (spec.name, *spec.aliases)}
        for table, spec in ((name, stages[name]) for name in tables_of(self.record) if name in stages):
            if not spec.algorithm:
                with self._placed(table):
                    kind = self.plugins.load(StageSpec, spec.name)
                    known = ["--" + option.key.replace("_", "-") for option in kind.options(spec, self.plugins)]
                    for flag in ("--" + key.replace("_", "-") for key in content[table]):
                        if flag not in known:
                            raise UsageError(f"No such option: {flag}.{close_match(flag, known)}")
                    values = Layer(origin=self.record.name, values=content[table])
                    kind(spec, self.plugins, Workspace(path.parent), [values], silent).check()
                checked.append(table)
        if not checked:
            raise Skip("no table is that of a stage that does not train")
        return ", ".join(checked)

    def _plan(self, layer: Layer) -> str:
        """The number of steps of the training that the layer describes. Raises UsageError if there is no plan for it. Without
        rows of the algorithm's kind only its settings are checked."""
        line: dict[str, Any] = {"data": ["rows.jsonl"], "run": "checked", "backend": "cpu"}
        composition = Composition(self.plugins, [Layer(origin="check", values=line), layer])
        composition.check()
        spec, needs = composition.required()
        check_keys(self.plugins, composition.options, composition.layers, spec.name)
        if spec.new_model is None and not composition.selection.arch:
            line |= {"arch": "dense", "preset": "tiny"}
        if not tiny_rows(needs.data):
            return "settings alone"
        with TemporaryDirectory(prefix="mm-check-") as folder:
            rows = Path(folder) / "rows.jsonl"
            rows.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows(needs.data)), encoding="utf-8")
            values = {**line, "data": [str(rows)], "eval_data": []}
            composition = Composition(self.plugins, [Layer(origin="check", values=values), layer])
            plan = api.plan(composition, Workspace(Path(folder)), say=silent)
        return count_text(plan.values["steps"], "step")

    @contextmanager
    def _placed(self, table: str) -> Iterator[None]:
        """An error of the user in the block is a mistake in this table."""
        try:
            yield
        except UsageError as error:
            raise Mistake(f"--config {self.record.name}:{table}: {error}", self._place(table)) from None

    def _place(self, table: str) -> str:
        path: Path = self.record.load()
        lines = path.read_text(encoding="utf-8").splitlines()
        line = next((number for number, text in enumerate(lines, 1) if text.strip().startswith(f"[{table}]")), 1)
        return f"{path}:{line}"
