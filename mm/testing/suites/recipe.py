"""The checks that every recipe must pass."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from mm.core.config.composition import Composition
from mm.core.config.unknown import check_keys
from mm.core.errors import UsageError
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import RecipeSpec
from mm.runtime.runs.recipes import config_layer, tables_of
from mm.testing.suites.check import Mistake, Skip
from mm.testing.suites.suite import Suite


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
        """Every table of an algorithm or a stage has only settings that a training with it has, with valid values."""
        trainings = []
        for table, layer in self._trainings():
            data = Layer(origin="check", values={"data": ["rows.jsonl"], "run": "checked"})
            try:
                composition = Composition(self.plugins, [data, layer])
                composition.check()
                check_keys(self.plugins, composition.options, composition.layers, layer.values["algo"])
            except UsageError as error:
                raise Mistake(f"--config {self.record.name}:{table}: {error}", self._place(table)) from None
            trainings.append(table)
        if not trainings:
            raise Skip("no table is called by the name of an algorithm or a stage")
        return f"{len(trainings)} trainings"

    def _trainings(self) -> Iterator[tuple[str, Layer]]:
        for table in tables_of(self.record):
            layer = config_layer(self.plugins, f"{self.record.name}:{table}")
            if "algo" in layer.values:
                yield table, layer

    def _place(self, table: str) -> str:
        path: Path = self.record.load()
        lines = path.read_text(encoding="utf-8").splitlines()
        line = next((number for number, text in enumerate(lines, 1) if text.strip().startswith(f"[{table}]")), 1)
        return f"{path}:{line}"
