"""Calibration on several ranks: a short training on a slice of the data, started as the ranks of a run are."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from mm.core.errors import MMError, UsageError
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import silent
from mm.core.workspace import Workspace
from mm.runtime.models.finding import find_model
from mm.runtime.runs.calibrate import OutOfTime, of_the_data, small_run
from mm.runtime.runs.launch_settings import LaunchSettings
from mm.runtime.runs.speed import Speed
from mm.runtime.runs.start_ranks import launch

# of the limit, for starting the ranks: each imports torch
_START_SECONDS = 10.0
_LONGEST = 15.0


def calibrate_ranks(plugins: PluginManager, run: Run, workspace: Workspace, ranks: int, limit: float) -> Speed:
    """Train for a few seconds on so many ranks, in a workspace of its own, and return their speed together, without that of the
    first third of the steps. Raises what the training would raise, and OutOfTime if too few steps end in time."""
    with TemporaryDirectory(prefix="mm-calibration-") as folder:
        small, slices = small_run(plugins, run, workspace, Path(folder))
        apart = Workspace(Path(folder) / "workspace")
        seconds = max(1.0, min(_LONGEST, limit - _START_SECONDS))
        small = attrs.evolve(_with_paths(plugins, small, workspace), train=attrs.evolve(
            small.train, nproc=ranks, max_time=seconds, log_interval=1, save_minutes=None, samples=0, keep_best=False,
            profile=None,
        ))  # fmt: skip
        with of_the_data(slices):
            ended = launch(plugins, ["train", *small.argv()], ranks, LaunchSettings(), apart, silent)
            if ended.code:
                raise (UsageError if ended.code == 2 else MMError)(ended.message or "the ranks ended early")
        return _speed(apart.run(small.select.run).path / "metrics.jsonl", run)


def _with_paths(plugins: PluginManager, run: Run, workspace: Workspace) -> Run:
    """The run with the folders of its models instead of names in the workspace."""

    def found(text: str) -> str:
        return str(find_model(text, workspace, plugins).resolve()) if text else ""

    roles = {name: part for name, part in run.parts.items() if name.startswith("role.")}
    parts = {**run.parts, **{name: attrs.evolve(part, from_=found(part.from_)) for name, part in roles.items()}}
    return attrs.evolve(run, select=attrs.evolve(run.select, from_=found(run.select.from_)), parts=parts)


def _speed(metrics: Path, run: Run) -> Speed:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    steps = [line for line in lines if "tokens" in line]
    if len(steps) < 2:
        raise OutOfTime
    first, last = steps[min(len(steps) // 3, len(steps) - 2)], steps[-1]
    seconds, number = last["seconds"] - first["seconds"], last["step"] - first["step"]
    rows = number / run.needs.steps * run.train.global_batch_size
    tokens = (last["tokens"] - first["tokens"]) / run.needs.steps
    return Speed(tokens_per_second=tokens / seconds, seconds_per_row=seconds / rows, origin="calibration")
