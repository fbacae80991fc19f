"""Every part holds to its kind's contract."""

import pytest

from mm.contracts import AlgorithmSpec, ArchitectureSpec, BackendSpec, ConverterSpec
from mm.core.plugins import PluginManager
from mm.core.spec import Spec
from mm.testing import assert_passed, check_part, plugin_manager

PARTS = [(AlgorithmSpec, "focal"), (BackendSpec, "twin"), (ArchitectureSpec, "arcee"), (ConverterSpec, "arcee")]


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    # works whether the package is installed or only on the path
    return plugin_manager("mm_example.focal", "mm_example.twin", "mm_example.arcee", "mm_example.arcee_format")


@pytest.mark.parametrize(("record", "name"), PARTS)
def test_conformance(plugins: PluginManager, record: type[Spec], name: str) -> None:
    spec = plugins.get(record, name)
    assert_passed(check_part(spec, plugins=plugins, module=plugins.owner(spec).value))
