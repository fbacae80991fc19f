"""Every part holds to its kind's contract."""

import pytest

from mm.contracts import AlgorithmSpec, ArchitectureSpec, BackendSpec, ConverterSpec
from mm.core.plugins import PluginManager
from mm.core.spec import Spec
from mm.testing import assert_passed, check_part, plugin_manager

PARTS = [
    (AlgorithmSpec, "focal"), (BackendSpec, "twin"), (ArchitectureSpec, "arcee"), (ArchitectureSpec, "mingru"),
    (ConverterSpec, "arcee"),
]  # fmt: skip
MODULES = [f"mm_example.{name}" for name in ("focal", "twin", "arcee", "mingru", "arcee_format")]


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    # works whether the package is installed or only on the path
    return plugin_manager(*MODULES)


@pytest.mark.parametrize(("record", "name"), PARTS)
def test_conformance(plugins: PluginManager, record: type[Spec], name: str) -> None:
    spec = plugins.get(record, name)
    assert_passed(check_part(spec, plugins=plugins, module=plugins.owner(spec).value))
