"""The time that a stage will take, judged by the finished runs of the workspace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.core.run import Run
from mm.core.workspace import Workspace


def tokens_per_second(plugins: PluginManager, workspace: Workspace) -> float | None:
    """The speed of the newest finished run on rows as they are; None if there is none. A run that draws completions is slower,
    by an amount that depends on its settings."""
    drawing = {spec.name for spec in plugins.specs(AlgorithmSpec) if spec.needs(spec.config() if spec.config else None).generates}
    return next((m["tokens"] / m["seconds"] for m in _finished(workspace) if m["algorithm"] not in drawing), None)


def training_seconds(plugins: PluginManager, run: Run, steps: int, tokens: float, workspace: Workspace) -> float | None:
    """The time of a training of so many steps, with about `tokens` tokens in a batch; None if no finished run tells.

    The newest finished run of the same algorithm tells the time per step. Otherwise the newest run of any tells the time per
    token, unless completions are drawn: their number of tokens is not known.
    """
    like = next((m for m in _finished(workspace) if m["algorithm"] == run.select.algo), None)
    if like:
        return float(like["seconds"] / like["step"] * steps)
    speed = tokens_per_second(plugins, workspace)
    if speed is None or run.needs.generates:
        return None
    return steps / run.needs.steps * tokens / speed


def _finished(workspace: Workspace) -> Iterator[Mapping[str, Any]]:
    """The manifests of the finished runs that have measured their time, newest first."""
    for folder in workspace.runs():
        manifest = {} if folder.damage else folder.manifest
        if manifest.get("state") == "finished" and all(manifest.get(key) for key in ("algorithm", "seconds", "step", "tokens")):
            yield manifest
