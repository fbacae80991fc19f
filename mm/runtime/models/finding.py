"""Finding the models and adapters that the user names: a run, one of its checkpoints, or a folder. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from mm.core.errors import CheckpointError, UsageError, close_match
from mm.core.run_folder import is_run
from mm.core.say import command_line
from mm.core.workspace import ADAPTER, RunFolder, Workspace, checkpoints, step_of


def find_model(text: str, workspace: Workspace) -> Path:
    """The model folder that a run's name or a path refers to; the newest checkpoint of a run without a finished model.

    `NAME@best` is the model that `--keep-best` kept, `NAME@STEP` the checkpoint of that step. Raises UsageError if there is no
    such model.
    """
    path = Path(text)
    if os.path.exists(path / "config.json"):  # False for a text that cannot be a path
        return path
    name, _, version = text.rpartition("@")
    if run := _find_run(name, workspace):
        return _find_version(run, version)
    run = _find_run(text, workspace)
    if run is None:
        if text and os.path.isdir(path):
            raise UsageError(f"{text} has no config.json: it is not a model folder.")
        names = [r.name for r in workspace.runs()]
        raise UsageError(f"No model at {text!r}: neither a run of this workspace nor a model folder.{close_match(text, names)}")
    if (run.model / "config.json").exists():
        return run.model
    if run.model.exists() or (not run.damage and run.manifest["state"] == "finished"):
        raise CheckpointError(f"The model of run {run.name} is damaged: {run.model / 'config.json'} is missing. {cure(run)}")
    if saved := checkpoints(run.checkpoints):
        return saved[-1]
    raise UsageError(f"Run {run.name} has no model yet.")


def find_adapter(text: str, workspace: Workspace) -> Path:
    """The saved adapter that a run's name (also `NAME@STEP`), a run's or model's folder, or a path refers to.

    Raises UsageError if there is no such run or path. The content is not checked here: the adapter does that when it reads it.
    """
    named = _find_run(text, workspace) or _find_run(text.rpartition("@")[0], workspace)
    folder = find_model(text, workspace) if named else Path(text)
    if not folder.exists():
        near = close_match(text, [run.name for run in workspace.runs()])
        raise UsageError(f"No adapter at {text!r}: no run of this workspace, and no such folder or file.{near}")
    return folder / ADAPTER if (folder / ADAPTER).is_dir() else folder


def run_of(folder: Path) -> RunFolder | None:
    """The run that a model folder or checkpoint is part of, or None."""
    parents = folder.resolve().parents
    return next((RunFolder(path) for path in parents[:2] if is_run(path)), None)


def _find_run(text: str, workspace: Workspace) -> RunFolder | None:
    runs = workspace.runs()
    named = next((run for run in runs if run.name == text), None)
    return named or next((run for run in runs if os.path.exists(text) and run.path.resolve() == Path(text).resolve()), None)


def _find_version(run: RunFolder, version: str) -> Path:
    """The folder of `NAME@version`. Raises UsageError that lists the versions of the run."""
    versions = _versions(run)
    if version not in versions:
        known = ", ".join(f"{run.name}@{key}" for key in versions) or "none"
        raise UsageError(f"Run {run.name} has no model {run.name}@{version}. It has: {known}.")
    return versions[version]


def way_on(run: RunFolder) -> str:
    """How to continue once the cause of a failure is mended: a resume if there is a checkpoint, otherwise a new start."""
    if checkpoints(run.checkpoints):
        return f"then: {command_line('train', '--resume', '--run', run.name)}"
    return f"then start again, after {command_line('runs', 'rm', run.name)}" if run.path.exists() else "then start again"


def cure(run: RunFolder) -> str:
    """The ways to continue if a file of one of the run's models is lost."""
    known = ", ".join(f"{run.name}@{version}" for version in _versions(run))
    return f"Restore it from a copy, or use another model of the run: {known}." if known else "Restore it from a copy."


def _versions(run: RunFolder) -> dict[str, Path]:
    """The folders of the best model and of the checkpoints, by the word after `@`."""
    best = {"best": run.best} if run.best.exists() else {}
    return best | {str(step_of(path)): path for path in checkpoints(run.checkpoints)}
