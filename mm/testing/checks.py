"""The functions that run the conformance checks of a part, one for each kind. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mm.core.plugins import PluginManager
from mm.core.records import (
    AdapterSpec,
    AlgorithmSpec,
    ArchitectureSpec,
    BackendSpec,
    CommandSpec,
    ConverterSpec,
    EngineSpec,
    FormatSpec,
    RecipeSpec,
    RewardSpec,
    SourceSpec,
    StageSpec,
    ToolSpec,
    TrackerSpec,
)  # fmt: skip
from mm.core.spec import Spec
from mm.testing.checks_of_data import check_engine, check_format, check_source
from mm.testing.checks_of_runs import check_command, check_recipe, check_stage, check_tracker
from mm.testing.running import declaring, engine_maker, run_suite
from mm.testing.suites.check import Check, fault
from mm.testing.suites.rows import ROWS, parse_rows
from mm.testing.suites.suite import Suite, options_of_part
from mm.testing.tiny import tiny_model, tiny_tokenizer, tiny_typed_rows, units_of


def check_backend(spec: BackendSpec, *, module: str | None = None) -> list[Check]:
    """Run the checks of a backend. If its probe reports no usable chip, all but those of the declaration are skipped.

    `module` is the module (or file) that declares the part, if it cannot be derived from the record.
    """
    from mm.testing.suites.backend import BackendSuite

    return run_suite(BackendSuite(spec, tiny_model(), module))


def check_architecture(
    spec: ArchitectureSpec, *, plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """Run the checks of an architecture, on its smallest preset."""
    from mm.testing.suites.architecture import ArchitectureSuite

    make_engine = engine_maker(plugins or PluginManager.discover())
    return run_suite(ArchitectureSuite(spec, module, make_engine=make_engine))


def check_algorithm(
    spec: AlgorithmSpec,
    *,
    architecture: str = "dense",
    rows: Sequence[Mapping[str, Any]] | None = None,
    plugins: PluginManager | None = None,
    module: str | None = None,
) -> list[Check]:
    """Run the checks of an algorithm, on tiny models. `rows` are JSON rows to train on; they are needed if the algorithm takes
    a kind of row that is not built in."""
    from mm.testing.suites.algorithm import AlgorithmSuite

    manager, tokenizer = plugins or PluginManager.discover(), tiny_tokenizer()
    module = module or declaring(manager, spec)
    try:
        kind = spec.needs(spec.config() if spec.config else None).data
    except Exception:  # `check_needs` calls `needs` again and reports the error
        kind = ""
    typed = tiny_typed_rows(kind, rows=rows, plugins=manager)
    units = None if typed is None else units_of(typed, tokenizer)
    make_model = lambda seed: tiny_model(architecture, tokenizer.vocab_size, seed, plugins=manager)  # noqa: E731
    records: tuple[type[Spec], ...] = (AdapterSpec, EngineSpec, RewardSpec, ToolSpec)
    parts = [part for record in records for part in manager.specs(record) if part.config]
    part_options = {option.key for part in parts for option in options_of_part(part)}
    return run_suite(AlgorithmSuite(
        spec, make_model, units, tokenizer, module, make_engine=engine_maker(manager), rows=typed or (),
        kinds={format.row for format in manager.specs(FormatSpec)}, part_options=part_options,
    ))  # fmt: skip


def check_adapter(
    spec: AdapterSpec, *, architecture: str = "dense", config: Any = None, plugins: PluginManager | None = None,
    module: str | None = None,
) -> list[Check]:  # fmt: skip
    """Run the checks of an adapter, on a tiny model. `config` replaces the default settings."""
    from mm.testing.suites.adapter import AdapterSuite

    manager = plugins or PluginManager.discover()
    return run_suite(AdapterSuite(spec, lambda: tiny_model(architecture, plugins=manager), module, config))


def check_converter(
    spec: ConverterSpec, *, plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """Run the checks of a converter, on the smallest preset that its format holds, or of a repacker, on models of its layouts."""
    manager = plugins or PluginManager.discover()
    if not spec.architecture:
        from mm.testing.suites.repacker import RepackerSuite

        return run_suite(RepackerSuite(spec, manager, tiny_tokenizer(), module))
    from mm.testing.suites.converter import ConverterSuite

    return run_suite(ConverterSuite(spec, manager.get(ArchitectureSpec, spec.architecture), tiny_tokenizer(), module))


def check_reward(
    spec: RewardSpec, *, rows: Sequence[Mapping[str, Any]] | None = None, config: Any = None,
    plugins: PluginManager | None = None, module: str | None = None,
) -> list[Check]:  # fmt: skip
    """Run the checks of a reward, on a few prompts and episodes, or on `rows` (JSON rows of prompts). `config` replaces the
    default settings; without it, a reward that cannot be made from its defaults is skipped."""
    from mm.testing.suites.reward import RewardSuite

    manager = plugins or PluginManager.discover()
    by_kind = {"prompt": rows} if rows is not None else {kind: ROWS[kind] for kind in ("prompt", "episode")}
    parsed = [row for kind, raw in by_kind.items() for row in parse_rows(kind, raw, manager)]
    return list(RewardSuite(spec, parsed, config, module).run())


def check_tool(spec: ToolSpec, *, module: str | None = None) -> list[Check]:
    """Run the checks of a tool."""
    from mm.testing.suites.tool import ToolSuite

    return list(ToolSuite(spec, module).run())


def check_part(
    spec: Spec,
    *,
    plugins: PluginManager | None = None,
    module: str | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
    locator: str | None = None,
) -> list[Check]:
    """Run the checks of a part of any kind. A kind without checks of its own gets those of the declaration.

    `plugins` knows the declaring module; `module` names it if it is another. `rows` are JSON rows for a part that takes rows of
    a kind of its own, `locator` is a text of `--data` that names a source.
    """
    module = module or (declaring(plugins, spec) if plugins else None)
    if isinstance(spec, BackendSpec):
        return check_backend(spec, module=module)
    if isinstance(spec, AlgorithmSpec):
        return check_algorithm(spec, plugins=plugins, module=module, rows=rows)
    if isinstance(spec, RewardSpec):
        return check_reward(spec, plugins=plugins, module=module, rows=rows)
    if isinstance(spec, FormatSpec):
        return check_format(spec, plugins=plugins, module=module, rows=rows)
    if isinstance(spec, SourceSpec):
        return check_source(spec, plugins=plugins, module=module, locator=locator)
    if isinstance(spec, ToolSpec):
        return check_tool(spec, module=module)
    check = _CHECKS.get(type(spec))
    return check(spec, plugins=plugins, module=module) if check else list(Suite(spec, module).run())


_CHECKS: dict[type[Spec], Callable[..., list[Check]]] = {
    ArchitectureSpec: check_architecture, ConverterSpec: check_converter, AdapterSpec: check_adapter, EngineSpec: check_engine,
    TrackerSpec: check_tracker, StageSpec: check_stage, RecipeSpec: check_recipe, CommandSpec: check_command,
}  # fmt: skip


def assert_passed(checks: Iterable[Check]) -> None:
    """Raise AssertionError with the failed checks and their places, if there are any, or if nothing but the declaration could
    be checked."""
    reason = fault(list(checks))
    assert not reason, reason
