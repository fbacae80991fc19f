"""Every part holds to its kind's contract."""

import pytest

from mm.core.plugins import PluginManager
from mm.testing import assert_passed, check_part, plugin_manager

PARTS = [("algorithm", "focal"), ("backend", "twin"), ("architecture", "arcee"), ("converter", "arcee")]


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    # works whether the package is installed or only on the path
    return plugin_manager("mm_example.focal", "mm_example.twin", "mm_example.arcee", "mm_example.arcee_format")


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_conformance(plugins: PluginManager, kind: str, name: str) -> None:
    spec = plugins.get(kind, name)
    assert_passed(check_part(spec, plugins=plugins, module=plugins.owner(spec).value))
