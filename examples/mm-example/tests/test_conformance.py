"""Every part holds to its kind's contract."""

import pytest

from mm.core.plugins import PluginManager
from mm.testing import assert_passed, check_part, plugin_manager

PARTS = [
    ("algorithm", "focal"), ("backend", "twin"), ("architecture", "arcee"), ("architecture", "mingru"), ("converter", "arcee"),
]  # fmt: skip
MODULES = [f"mm_example.{name}" for name in ("focal", "twin", "arcee", "mingru", "arcee_format")]


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    # works whether the package is installed or only on the path
    return plugin_manager(*MODULES)


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_conformance(plugins: PluginManager, kind: str, name: str) -> None:
    spec = plugins.get(kind, name)
    assert_passed(check_part(spec, plugins=plugins, module=plugins.owner(spec).value))
