"""Finding the models and adapters that the user names: a run, one of its checkpoints, or a folder. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mm.core.errors import CheckpointError, UsageError, close_match
from mm.core.plugins import PluginManager
from mm.core.run_folder import is_run
from mm.core.say import command_line
from mm.core.workspace import ADAPTER, RunFolder, Workspace, checkpoints, step_of
from mm.runtime.hubs.models import is_remote, local_model


def find_model(text: str, workspace: Workspace, plugins: PluginManager | None = None) -> Path:
    """The model folder that a run's name, a path or a hub's name refers to; the newest checkpoint of a run without a finished
    model. A model of a hub is downloaded; `plugins` are those that know short names of hubs.

    `NAME@best` is the model that `--keep-best` kept, `NAME@STEP` the checkpoint of that step. Raises UsageError if there is no
    such model.
    """
    path = Path(text)
    if os.path.exists(path / "config.json"):  # False for a text that cannot be a path
        return path
    if is_remote(text):
        return _of_hub(text, local_model(plugins, text))
    name, _, version = text.rpartition("@")
    if run := _find_run(name, workspace):
        return _find_version(run, version)
    run = _find_run(text, workspace)
    if run is None:
        if text and os.path.isdir(path):
            raise UsageError(f"{text} has no config.json: it is not a model folder.{_model_of_run(path)}")
        if path.is_file():
            raise UsageError(f"{text} is a file: {convert_first(path)}")
        names = [r.name for r in workspace.runs()]
        raise UsageError(f"No model at {text!r}: neither a run of this workspace nor a model folder.{close_match(text, names)}")
    if (run.model / "config.json").exists():
        return run.model
    if run.model.exists() or (not run.damage and run.manifest["state"] == "finished"):
        raise CheckpointError(f"The model of run {run.name} is damaged: {run.model / 'config.json'} is missing. {cure(run)}")
    if saved := checkpoints(run.checkpoints):
        return saved[-1]
    raise UsageError(f"Run {run.name} has no model yet.")


def _of_hub(text: str, path: Path) -> Path:
    """The folder of a hub's model in the cache. Raises UsageError if it is none."""
    if os.path.exists(path / "config.json"):
        return path
    if path.is_file():
        raise UsageError(f"{text} is a file: {convert_first(text)}")
    raise UsageError(f"{text} has no config.json: it is not a model folder.")


def find_tokenizer(text: str | Path, plugins: PluginManager | None = None) -> Path:
    """The folder of the tokenizer that a path or a hub's name refers to; of a hub, its weights are not downloaded."""
    return local_model(plugins, str(text), weights=False) if is_remote(str(text)) else Path(text)


def convert_first(path: Path | str) -> str:
    """The advice for a model that only `mm convert` reads."""
    name = Path(str(path).rpartition(":")[2]).stem  # of a hub's name, its file
    return f"make a model folder of it with {command_line('convert', str(path), f'{name}-mm')}, and name that."


def find_adapter(text: str, workspace: Workspace, plugins: PluginManager | None = None) -> Path:
    """The saved adapter that a run's name (also `NAME@STEP`), a run's or model's folder, or a path refers to.

    A hub's name is one too. Raises UsageError if there is no such run or path. The content is not checked here: the adapter does
    that when it reads it.
    """
    if is_remote(text):
        return local_model(plugins, text)
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


def _model_of_run(path: Path) -> str:
    """The advice to name the model of a run's folder, which is in another workspace; empty for any other folder."""
    run = RunFolder(path)
    saved = [run.model] if (run.model / "config.json").exists() else checkpoints(run.checkpoints)[-1:]
    return f" It is the folder of a run of another workspace: name its model, {saved[-1]}." if is_run(path) and saved else ""


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
        return f"then: {resume_line(run)}"
    return f"then start again, after {command_line('runs', 'rm', run.name)}" if run.path.exists() else "then start again"


def resume_line(run: RunFolder, *words: str, plugins: Iterable[str] | None = None) -> str:
    """The command that resumes a run, with further words and the values of `-p`, by default those that it was last trained
    with."""
    options = plugin_options(run) if plugins is None else [*plugins]
    return command_line("train", "--resume", "--run", run.name, *words, plugins=options)


def plugin_options(run: RunFolder) -> list[str]:
    """The values of `-p` that a run was last trained with; empty if its manifest is damaged."""
    manifest = {} if run.damage else run.manifest
    # a run of an older version has only the files and modules, among the packages: those have no version
    loaded = [name for name, version in manifest.get("plugins", {}).items() if not version]
    return list(map(str, manifest.get("plugin_options", loaded)))


def cure(run: RunFolder) -> str:
    """The ways to continue if a file of one of the run's models is lost."""
    known = ", ".join(f"{run.name}@{version}" for version in _versions(run))
    return f"Restore it from a copy, or use another model of the run: {known}." if known else "Restore it from a copy."


def _versions(run: RunFolder) -> dict[str, Path]:
    """The folders of the best model and of the checkpoints, by the word after `@`."""
    best = {"best": run.best} if run.best.exists() else {}
    return best | {str(step_of(path)): path for path in checkpoints(run.checkpoints)}
