"""Removing runs: never one that is in progress, and never only a part of one."""

from __future__ import annotations

from mm.core.locks import exclusive
from mm.core.workspace import RunFolder
from mm.runtime.models.storage import discard


def remove(run: RunFolder) -> None:
    """Delete a run's folder. Raises UsageError if a process is training the run."""
    with exclusive(run.path / ".lock", f"Run {run.name} is in progress in {{holder}}: stop it first. It was not removed."):
        discard(run.path)
