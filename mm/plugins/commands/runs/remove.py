"""Removing runs: never one that is in progress, and never half."""

from __future__ import annotations

import os
import shutil

from mm.core.locks import exclusive
from mm.core.workspace import RunFolder


def size(run: RunFolder) -> int:
    """Bytes of all files of a run."""
    return sum(path.lstat().st_size for path in run.path.rglob("*") if path.is_file())


def remove(run: RunFolder) -> None:
    """Delete a run's folder. Raises UsageError when a process is training it."""
    with exclusive(run.path / ".lock", f"Run {run.name} is in progress in {{holder}}: stop it first. It was not removed."):
        aside = run.path.with_name(f".{run.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(run.path, aside)  # from here on it is no run, even if deleting is broken off
    shutil.rmtree(aside)
