"""Files that rewards and tools need: their paths start at the workspace, and what is wrong with one is reported early."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from mm.core.run import Run
    from mm.core.workspace import Workspace

_PARTS = ("reward.", "tool.")  # the sections of parts whose relative paths start at the workspace


def placed(config: Any, workspace: Workspace) -> Any:
    """The config of a reward or tool (None without one) with its relative paths below the workspace."""
    if config is None:
        return None
    given = attrs.asdict(config, recurse=False)
    return attrs.evolve(config, **{field: workspace.path / v for field, v in given.items() if isinstance(v, Path)})


def check_files(run: Run, workspace: Workspace) -> None:
    """Call `check_files()` of the configs of rewards and tools that have it, before anything is loaded. Raises what it raises."""
    for name, config in run.parts.items():
        if name.startswith(_PARTS) and hasattr(config, "check_files"):
            placed(config, workspace).check_files()
