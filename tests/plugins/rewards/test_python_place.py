"""Where the file of the reward `python` is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm.core.errors import UsageError
from mm.plugins.rewards.python import PythonConfig


def test_a_missing_file_is_said_to_be_missing_where(mm_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = mm_workspace / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    start = f"A relative path starts at the workspace, {mm_workspace}"
    with pytest.raises(UsageError, match=rf"mine\.py does not exist\. {start}\.$"):
        PythonConfig(function=mm_workspace / "mine.py:short").locate()
    (here / "mine.py").write_text("short = len")
    with pytest.raises(UsageError, match=rf"The current folder has it: {here}/mine\.py\.$"):
        PythonConfig(function=mm_workspace / "mine.py:short").locate()
