"""Helpers of the functions that run checks. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mm.core.plugins import PluginManager
from mm.core.records import EngineSpec
from mm.core.spec import Spec
from mm.testing.suites.check import Check
from mm.testing.suites.running import Checks

if TYPE_CHECKING:
    from mm.runtime.generation.engine import Engine
    from mm.runtime.nn.model import Model


def declaring(plugins: PluginManager, spec: Spec) -> str | None:
    """The module or file that declares a part of these plugins; None for a record that none of them yielded."""
    return next((plugin.value for plugin in plugins.plugins if any(record is spec for record in plugin.records)), None)


def run_suite(suite: Checks) -> list[Check]:
    """Run a suite on one thread: the models are so small that a second thread only waits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(suite.run())
    finally:
        torch.set_num_threads(before)


def engine_maker(plugins: PluginManager) -> Callable[[Model], Engine] | None:
    """Makes the first engine that runs on every backend; None if there is none."""
    spec = next((s for s in plugins.specs(EngineSpec) if isinstance(s, EngineSpec) and not s.backends), None)
    if spec is None:
        return None

    def make(model: Model) -> Engine:
        from mm.runtime.devices.backend import Backend

        engine: Engine = spec.load()(spec.config() if spec.config else None, model, Backend())
        return engine

    return make
