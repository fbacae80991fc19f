"""Removing runs: never one that is in progress, and never only a part of one."""

from __future__ import annotations

import os
import shutil

from mm.core.locks import exclusive
from mm.core.workspace import RunFolder


def size(run: RunFolder) -> int:
    """The size of all files of a run, in bytes."""
    return sum(path.lstat().st_size for path in run.path.rglob("*") if path.is_file())


def remove(run: RunFolder) -> None:
    """Delete a run's folder. Raises UsageError if a process is training the run."""
    with exclusive(run.path / ".lock", f"Run {run.name} is in progress in {{holder}}: stop it first. It was not removed."):
        aside = run.path.with_name(f".{run.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(run.path, aside)  # no longer listed as a run, even if the deletion below is interrupted
    shutil.rmtree(aside)
