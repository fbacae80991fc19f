"""The values that `--config` names: a settings file, a recipe, or one table of either."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mm.core.config.composition import Composition
from mm.core.config.sections import PREFIXED
from mm.core.errors import UsageError, close_match
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, RecipeSpec, StageSpec
from mm.core.run import read_toml


def config_layer(plugins: PluginManager, config: str | os.PathLike[str]) -> Layer:
    """The layer of a value of `--config`: FILE, RECIPE, FILE:TABLE or RECIPE:TABLE.

    Without a table it has the values of the whole file. With a table it has those of one training: of this table, of the tables
    of parts, and those above all tables. The table's name then selects the algorithm, if it is that of an algorithm or of a
    stage. Raises UsageError for a name that is neither a file nor a recipe, and for an unknown table.
    """
    text = os.fspath(config)
    name, colon, table = text.rpartition(":")
    if not colon or Path(text).exists():
        return Layer(origin=text, values=read_toml(_path(plugins, text)))
    path = _path(plugins, name)
    values = read_toml(path, pick=partial(_training, plugins, text, table))
    # a line may choose other rewards than a recipe, whose options of its own rewards then have no use
    return Layer(origin=text, values=values, lenient=path != Path(name))


def tables_of(recipe: RecipeSpec) -> list[str]:
    """The names of the tables of a recipe."""
    path: Path = recipe.load()
    return list(_tables(tomllib.loads(path.read_text(encoding="utf-8"))))


def check_table(composition: Composition) -> None:
    """Raise UsageError if a whole file or recipe is given for one training and has tables of several: a table must be named."""
    known = {option.key for option in composition.options}
    parts = {spec.name for record, _ in PREFIXED for spec in composition.plugins.specs(record)}
    names = _trainings(composition.plugins)
    for layer in composition.layers:
        if layer.textual or layer.arguments:
            continue
        keys = [key for key in layer.values if key not in known]
        first = {name: key for name in names if (key := next((key for key in keys if _is_below(key, name)), None))}
        tables = sorted(first, key=lambda name: keys.index(first[name]))  # in the order of the file
        if set(tables) - parts:  # a table such as [lora] may also be that of a part
            algorithm = composition.algorithm.name if composition.algorithm else None
            example = next((name for name in tables if names[name] == algorithm), tables[0])
            raise UsageError(
                f"--config {layer.origin} has a table for each training: name one, as in --config {layer.origin}:{example}. "
                f"Tables: {', '.join(tables)}. Several in a row: mm run NAME --config {layer.origin}."
            )


def _is_below(key: str, table: str) -> bool:
    return key.startswith(table.replace("-", "_") + "_")


def _trainings(plugins: PluginManager) -> dict[str, str]:
    """The names of tables that describe a training, each with its algorithm."""
    names = {spec.name: spec.name for spec in plugins.specs(AlgorithmSpec)}
    return names | {name: spec.algorithm for spec in plugins.specs(StageSpec) for name in (spec.name, *spec.aliases)}


def _path(plugins: PluginManager, name: str) -> Path:
    """The path of a file, or that of the recipe of this name."""
    path = Path(name)
    if path.is_file() or path.suffix or os.sep in name:
        return path
    try:
        recipe: Path = plugins.load(RecipeSpec, name)
    except UsageError as error:
        raise UsageError(f"--config {name}: there is no such file. {error}") from None
    return recipe


def _training(plugins: PluginManager, text: str, table: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a file's content for the training that a table describes."""
    tables = _tables(content)
    if table not in tables:
        known = ", ".join(tables) or "none"
        raise UsageError(f"--config {text}: no table [{table}].{close_match(table, tables)} Tables: {known}.")
    trainings = _trainings(plugins)
    algorithm = {"algo": trainings[table]} if trainings.get(table) else {}
    common = {name: value for name, value in content.items() if name not in tables or name not in {table, *trainings}}
    return {**algorithm, **common, **tables[table]}


def _tables(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: value for name, value in content.items() if isinstance(value, dict)}
