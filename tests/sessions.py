"""The parts of a training that is not started, to be looked into or driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.core.config.composition import Composition
from mm.core.layers import argument_layer
from mm.core.plugins import PluginManager
from mm.core.say import silent
from mm.core.workspace import Workspace
from mm.runtime.runs import api, session
from mm.runtime.runs.manifest import Session


def built(plugins: PluginManager, workspace: Path, **options: Any) -> Session:
    """The session that `mm.train` would start with these options; nothing is written but the token cache."""
    given = {"run": "unused", "backend": "cpu", "dtype": "fp32", "eval_ratio": 0.0, **options}
    resolved = api.new_run(Composition(plugins, [argument_layer(given)]), Workspace(workspace), silent)
    return session.build(plugins, resolved.run, Workspace(workspace), say=silent)
