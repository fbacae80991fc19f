"""`mm` in processes of its own, which a test may signal, kill or cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def start_mm(workspace: Path, *words: object, **options: Any) -> subprocess.Popen[str]:
    """Start `mm WORDS` in a workspace. `options` are those of `subprocess.Popen`, such as where its output goes."""
    environ = {**os.environ, "MM_WORKSPACE": str(workspace)}
    return subprocess.Popen([sys.executable, "-m", "mm", *map(str, words)], env=environ, text=True, **options)
