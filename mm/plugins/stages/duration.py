"""The time that a stage will take, judged by the finished runs of the workspace."""

from __future__ import annotations

from mm.core.run import Run
from mm.core.workspace import Workspace


def tokens_per_second(workspace: Workspace) -> float | None:
    """The speed of the newest finished run; None if there is none."""
    for folder in workspace.runs():
        manifest = folder.manifest
        if manifest.get("state") == "finished" and manifest.get("seconds"):
            return float(manifest["tokens"] / manifest["seconds"])
    return None


def training_seconds(run: Run, rows: int, tokens: float, workspace: Workspace) -> float | None:
    """The time of a training on `rows` rows with about `tokens` tokens per epoch; None if no finished run tells.

    The newest finished run of the same algorithm tells the time per step. Otherwise the newest run of any tells the time per
    token, unless completions are drawn: their number of tokens is not known.
    """
    settings = run.train
    steps = settings.max_steps or settings.epochs * rows / settings.global_batch_size * run.needs.steps
    for manifest in (folder.manifest for folder in workspace.runs()):
        if manifest.get("state") == "finished" and manifest["algorithm"] == run.select.algo and manifest["step"]:
            return float(manifest["seconds"] / manifest["step"] * steps)
    speed = tokens_per_second(workspace)
    if speed is None or run.needs.generates:
        return None
    return tokens / max(1, rows) * settings.global_batch_size / run.needs.steps * steps / speed
