"""The functions that run the checks of formats, sources and engines. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, BackendSpec, EngineSpec, FormatSpec, SourceSpec
from mm.testing.running import declaring, run_suite
from mm.testing.suites.check import Check
from mm.testing.tiny import tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from mm.runtime.devices.backend import Backend


def check_engine(
    spec: EngineSpec, *, architecture: str = "dense", plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """Run the checks of an engine, on a tiny model; on the CPU if it runs on every backend."""
    from mm.testing.suites.continuous import ContinuousEngineSuite

    manager = plugins or PluginManager.discover()
    make_model = lambda seed: tiny_model(architecture, seed=seed, plugins=manager)  # noqa: E731
    module = module or declaring(manager, spec)
    return run_suite(ContinuousEngineSuite(spec, make_model, _backend(spec, manager), module))


def _backend(spec: EngineSpec, plugins: PluginManager) -> Backend | None:
    from mm.runtime.devices.backend import Backend

    if not spec.backends:
        return Backend()
    here = [b for b in plugins.specs(BackendSpec) if b.name in spec.backends and b.probe().available]
    if not here:
        return None
    backend: Backend = here[0].load()(None)
    backend.setup()
    return backend


def check_format(
    spec: FormatSpec,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    plugins: PluginManager | None = None,
    module: str | None = None,
) -> list[Check]:
    """Run the checks of a format. `rows` are JSON rows of it; they are needed if it recognises neither a row of a built-in kind
    nor one with a text or a conversation under each of its `keys`."""
    from mm.testing.suites.format import FormatSuite

    manager = plugins or PluginManager.discover()
    others = [other for other in manager.specs(FormatSpec) if other.name != spec.name]
    return run_suite(FormatSuite(
        spec, rows or (), tiny_tokenizer(), others=others, algorithms=manager.specs(AlgorithmSpec),
        module=module or declaring(manager, spec),
    ))  # fmt: skip


def check_source(
    spec: SourceSpec, *, locator: str | None = None, plugins: PluginManager | None = None, module: str | None = None
) -> list[Check]:
    """Run the checks of a source. `locator` is a text of `--data` that names it; it is needed if the source recognises neither
    its own name nor the path of a file of JSON lines."""
    from mm.testing.suites.source import SourceSuite

    manager = plugins or PluginManager.discover()
    others = [other for other in manager.specs(SourceSpec) if other.name != spec.name]
    with TemporaryDirectory() as folder:
        return run_suite(SourceSuite(
            spec, Path(folder), locator, formats=manager.specs(FormatSpec), others=others,
            module=module or declaring(manager, spec),
        ))  # fmt: skip
