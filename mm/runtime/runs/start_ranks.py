"""Starting the ranks of a command with torch's elastic agent; see `launch_agent`. Imports no torch."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mm.core.plugins import PluginManager
from mm.core.say import Say
from mm.core.workspace import Workspace
from mm.runtime.runs.launch_report import Ended
from mm.runtime.runs.launch_settings import LaunchSettings, environment


def launch(
    plugins: PluginManager, words: Sequence[str], nproc: int, settings: LaunchSettings, workspace: Workspace, say: Say
) -> Ended:
    """Run the command `mm WORDS` on `nproc` ranks of this machine, and those of the other machines, until all have ended.

    Rank 0 prints, unless `say` is silent. The others print only if they end it.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings about host names that do not matter
    from mm.runtime.runs.launch_agent import run_ranks

    if settings.nnodes > 1 and settings.node_rank:
        say(f"machine {settings.node_rank} of {settings.nnodes}: rank 0, on another one, prints what happens")
    chosen = [word for option in plugins.options for word in ("-p", option)]
    command = [sys.executable, "-m", "mm", *chosen, *words]
    with tempfile.TemporaryDirectory(prefix="mm-ranks-") as folder, environment({"MM_WORKSPACE": str(workspace.path)}):
        return run_ranks(command, nproc, settings, Path(folder), say)
