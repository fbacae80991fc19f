"""What the tutorials say about their files, beside what their own blocks check."""

from __future__ import annotations

import re
from pathlib import Path

from mm.contracts import AlgorithmSpec
from mm.testing import check_part, plugin_manager

PAGE = Path(__file__).parents[2] / "docs" / "tutorials.md"


def test_the_first_algorithm_fails_its_check_if_its_state_is_forgotten(mm_workspace: Path) -> None:
    found = re.search(r"^```python file=modest\.py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found and 'state = ("taken",)' in found[1]
    (mm_workspace / "modest.py").write_text(found[1].replace('state = ("taken",)', "state = ()"))
    plugins = plugin_manager("./modest.py")
    checks = check_part(plugins.get(AlgorithmSpec, "modest"), plugins=plugins)
    failed = {check.name: check.detail for check in checks if not check.ok}
    assert "taken" in failed["changed attributes"] and "which failed" in failed["resume"]
