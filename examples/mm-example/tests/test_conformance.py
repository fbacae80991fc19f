"""Every part holds to its kind's contract."""

import pytest

from mm.testing import assert_passed, check_part
from mm.testing.pytest_plugin import Plugins

MODULES = ["mm_example.focal", "mm_example.twin", "mm_example.arcee", "mm_example.mingru", "mm_example.arcee_format"]
# found whether the package is installed or only on the path
pytestmark = pytest.mark.mm_plugins(*MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_conformance(mm_plugins: Plugins, module: str) -> None:
    plugins = mm_plugins()
    (part,) = next(plugin.records for plugin in plugins.plugins if plugin.value == module)
    assert_passed(check_part(part, plugins=plugins, module=module))
