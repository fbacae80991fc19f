"""The functions that run the checks of trackers, callbacks, stages, recipes and commands. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, CommandSpec, RecipeSpec, StageSpec, TrackerSpec
from mm.testing.running import declaring, run_suite
from mm.testing.suites.author import plugin_module
from mm.testing.suites.check import Check
from mm.testing.tiny import make_folder, tiny_model, tiny_resolved, tiny_run, tiny_tokenizer, tiny_typed_rows, units_of

if TYPE_CHECKING:
    from mm.runtime.nn.model import Model
    from mm.runtime.text.tokenizer import Tokenizer
    from mm.testing.suites.training import UnitStore


def check_tracker(spec: TrackerSpec, *, plugins: PluginManager | None = None, module: str | None = None) -> list[Check]:
    """Run the checks of a tracker, with its default settings, in short trainings of a tiny model."""
    from mm.testing.suites.tracker import TrackerSuite

    manager = plugins or PluginManager.discover()
    with TemporaryDirectory() as folder:
        return run_suite(TrackerSuite(spec, Path(folder), *_trained(manager), module or declaring(manager, spec)))


def check_callbacks(plugin: str, *, plugins: PluginManager | None = None) -> list[Check]:
    """Run the checks of the callbacks that a plugin's hook `mm_callbacks` gives. `plugin` is its module, or a .py file that is
    loaded already."""
    from mm.testing.suites.tracker import CallbackSuite

    manager = plugins or PluginManager.discover([plugin])
    module = plugin_module(plugin)
    with TemporaryDirectory() as name:
        run = tiny_resolved(Path(name), first_algorithm(manager), plugins=manager).run
        return run_suite(CallbackSuite(module, run, Path(name), *_trained(manager)))


def _trained(plugins: PluginManager) -> tuple[Callable[[], Model], UnitStore, Tokenizer]:
    """(Makes a tiny model, its rows, its tokenizer)."""
    from mm.testing.suites.training import UnitStore

    tokenizer, rows = tiny_tokenizer(), tiny_typed_rows("text", plugins=plugins) or []
    store = UnitStore(units_of(rows, tokenizer), rows)
    return lambda: tiny_model(vocab_size=tokenizer.vocab_size, plugins=plugins), store, tokenizer


def check_stage(spec: StageSpec, *, plugins: PluginManager | None = None, module: str | None = None) -> list[Check]:
    """Run the checks of a stage in a workspace of its own. It is run with the defaults of its options, if it needs no more than
    a tokenizer and models, and says that it takes no longer than a minute."""
    from mm.testing.suites.stage import StageSuite

    manager = plugins or PluginManager.discover()
    with TemporaryDirectory() as name:
        folder, made = Path(name), dict[str, Path]()

        def artifact(name: str) -> Path | None:
            kind = name.partition(":")[0]
            if kind not in made and kind == "tokenizer":
                made[kind] = make_folder(folder / "tokenizers" / "tiny")
                tiny_tokenizer().save(made[kind])
            elif kind not in made and kind == "run":
                made[kind] = tiny_run(folder, first_algorithm(manager), plugins=manager, run="tiny").path
            return made.get(kind)

        return run_suite(StageSuite(spec, manager, folder, artifact, module or declaring(manager, spec)))


def first_algorithm(plugins: PluginManager) -> str:
    """The name of an algorithm that makes a new model from texts."""
    found = (spec for spec in plugins.specs(AlgorithmSpec) if not spec.starts_from and spec.new_model)
    return next(spec.name for spec in found if spec.needs(spec.config() if spec.config else None).data == "text")


def check_recipe(spec: RecipeSpec, *, plugins: PluginManager | None = None, module: str | None = None) -> list[Check]:
    """Run the checks of a recipe, which one of `plugins` has."""
    from mm.testing.suites.recipe import RecipeSuite

    manager = plugins or PluginManager.discover()
    return list(RecipeSuite(spec, manager, module or declaring(manager, spec)).run())


def check_command(spec: CommandSpec, *, plugins: PluginManager | None = None, module: str | None = None) -> list[Check]:
    """Run the checks of a command, each in a process of its own. A plugin that is not installed must be a module that can be
    imported there, or a .py file."""
    from mm.testing.suites.command import CommandSuite

    manager = plugins or PluginManager.discover()
    module = module or declaring(manager, spec)
    return list(CommandSuite(spec, module if module in manager.options else "", module).run())
