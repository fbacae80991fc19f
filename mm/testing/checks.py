"""The functions that run the conformance checks of a part, one for each kind. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mm.core.plugins import PluginManager
from mm.core.records import (
    AdapterSpec,
    AlgorithmSpec,
    ArchitectureSpec,
    BackendSpec,
    ConverterSpec,
    EngineSpec,
    RewardSpec,
    ToolSpec,
)  # fmt: skip
from mm.core.spec import Spec
from mm.testing.suites.rows import ROWS, parse_rows
from mm.testing.suites.suite import Check, Suite, options_of_part
from mm.testing.tiny import tiny_model, tiny_tokenizer, tiny_typed_rows, units_of

if TYPE_CHECKING:
    from mm.runtime.generation.engine import Engine
    from mm.runtime.nn.model import Model


def check_backend(spec: BackendSpec, *, module: str | None = None) -> list[Check]:
    """Run the checks of a backend. If its probe reports no usable chip, all but those of the declaration are skipped.

    `module` is the module (or file) that declares the part, if it cannot be derived from the record.
    """
    from mm.testing.suites.backend import BackendSuite

    return _run(BackendSuite(spec, tiny_model(), module))


def check_architecture(
    spec: ArchitectureSpec, *, plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """Run the checks of an architecture, on its smallest preset."""
    from mm.testing.suites.architecture import ArchitectureSuite

    make_engine = _make_engine(plugins or PluginManager.discover())
    return _run(ArchitectureSuite(spec, module, make_engine=make_engine))


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
    module = module or _declaring(manager, spec)
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
    return _run(AlgorithmSuite(
        spec, make_model, units, tokenizer, module, make_engine=_make_engine(manager), rows=typed or (),
        part_options=part_options,
    ))  # fmt: skip


def check_adapter(
    spec: AdapterSpec, *, architecture: str = "dense", config: Any = None, plugins: PluginManager | None = None,
    module: str | None = None,
) -> list[Check]:  # fmt: skip
    """Run the checks of an adapter, on a tiny model. `config` replaces the default settings."""
    from mm.testing.suites.adapter import AdapterSuite

    manager = plugins or PluginManager.discover()
    return _run(AdapterSuite(spec, lambda: tiny_model(architecture, plugins=manager), module, config))


def check_converter(
    spec: ConverterSpec, *, plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """Run the checks of a converter, on the smallest preset that its format can hold."""
    from mm.testing.suites.converter import ConverterSuite

    architecture = (plugins or PluginManager.discover()).get(ArchitectureSpec, spec.architecture)
    return _run(ConverterSuite(spec, architecture, tiny_tokenizer(), module))


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


def check_part(spec: Spec, *, plugins: PluginManager | None = None, module: str | None = None) -> list[Check]:
    """Run the checks of a part of any kind. A kind without checks of its own gets those of the declaration.

    `plugins` knows the declaring module; `module` names it if it is another.
    """
    module = module or (_declaring(plugins, spec) if plugins else None)
    if isinstance(spec, BackendSpec):
        return check_backend(spec, module=module)
    if isinstance(spec, ArchitectureSpec):
        return check_architecture(spec, plugins=plugins, module=module)
    if isinstance(spec, AlgorithmSpec):
        return check_algorithm(spec, plugins=plugins, module=module)
    if isinstance(spec, ConverterSpec):
        return check_converter(spec, plugins=plugins, module=module)
    if isinstance(spec, RewardSpec):
        return check_reward(spec, plugins=plugins, module=module)
    if isinstance(spec, ToolSpec):
        return check_tool(spec, module=module)
    if isinstance(spec, AdapterSpec):
        return check_adapter(spec, plugins=plugins, module=module)
    return list(Suite(spec, module).run())


def _declaring(plugins: PluginManager, spec: Spec) -> str | None:
    """The module or file that declares a part of these plugins; None for a record that none of them yielded."""
    return next((plugin.value for plugin in plugins.plugins if any(record is spec for record in plugin.records)), None)


def _run(suite: Suite) -> list[Check]:
    """Run a suite on one thread: the models are so small that a second thread only waits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(suite.run())
    finally:
        torch.set_num_threads(before)


def _make_engine(plugins: PluginManager) -> Callable[[Model], Engine] | None:
    """Makes the first engine that runs on every backend; None if there is none."""
    spec = next((s for s in plugins.specs(EngineSpec) if isinstance(s, EngineSpec) and not s.backends), None)
    if spec is None:
        return None

    def make(model: Model) -> Engine:
        from mm.runtime.devices.backend import Backend

        engine: Engine = spec.load()(spec.config() if spec.config else None, model, Backend())
        return engine

    return make


def assert_passed(checks: Iterable[Check]) -> None:
    """Raise AssertionError with the failed checks, if there are any."""
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    assert not failed, "\n".join(failed)
