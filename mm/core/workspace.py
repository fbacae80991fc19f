"""The workspace: the folder with runs, tokenizers, data and the token cache. Finding runs, models and adapters in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import CheckpointError, UsageError, close_match
from mm.core.locks import is_locked

ADAPTER = "adapter"  # the folder inside a model folder that holds its adapter, if it has one


@attrs.frozen
class RunFolder:
    """The folder of one run. Its manifest records the run's origins and its state."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which is the folder's."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.path / "model"

    @property
    def best(self) -> Path:
        """The folder of the best model so far, which `--keep-best` writes."""
        return self.path / "best"

    @property
    def exists_message(self) -> str:
        """The error message for a user who starts another run of this name, with the ways to continue."""
        name = shlex.quote(self.name)
        if is_locked(self.path / ".lock"):
            cure = "a process is training it: choose another --run."
        elif self.manifest.get("state") == "finished":
            cure = f"it is finished: choose another --run, or remove it with mm runs rm {name}."
        elif checkpoints(self.checkpoints):
            cure = f"resume it with --resume --run {name}, or choose another --run."
        else:
            cure = f"it has saved nothing yet: choose another --run, or remove it with mm runs rm {name}."
        return f"Run {self.name} exists; {cure}"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, which are one folder each."""
        return self.path / "checkpoints"

    @property
    def evals(self) -> Path:
        """The folder of the reports of evaluations, which are one JSON file each."""
        return self.path / "evals"

    @property
    def manifest(self) -> dict[str, Any]:
        """The run's state, versions, plugins, hashes of its data, and the origin of each setting; empty if there is no manifest.

        Raises CheckpointError if it is damaged.
        """
        path = self.path / "manifest.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged manifest: {error}") from None

    def update_manifest(self, values: Mapping[str, Any]) -> None:
        """Merge top-level values into the manifest, atomically."""
        write_text(self.path / "manifest.json", json.dumps({**self.manifest, **values}, indent=2, ensure_ascii=False))


@attrs.frozen
class Workspace:
    """A folder with runs, tokenizers, data and the token cache."""

    path: Path

    @classmethod
    def here(cls) -> Workspace:
        """The workspace of this process: the folder that `MM_WORKSPACE` names, or the current one."""
        return cls(Path(os.environ.get("MM_WORKSPACE", ".")))

    @property
    def cache(self) -> Path:
        """The folder of token caches and of the record of stages. It may be deleted at any time."""
        return self.path / ".mm"

    def run(self, name: str) -> RunFolder:
        """The folder of a run, which need not exist. Raises UsageError for an invalid name."""
        if not name or name != Path(name).name or name.startswith("."):
            raise UsageError(f"--run {name!r}: a run's name is one folder name, without '/'.")
        return RunFolder(self.path / "runs" / name)

    def existing(self, name: str) -> RunFolder:
        """The run of that name. Raises UsageError with close matches if there is none."""
        run = self.run(name)
        if not run.path.is_dir():
            names = [r.name for r in self.runs()]
            raise UsageError(f"No run {name!r} in {self.path / 'runs'}.{close_match(name, names)}")
        return run

    def runs(self) -> list[RunFolder]:
        """All runs, newest first."""
        folder = self.path / "runs"
        runs = [RunFolder(p) for p in folder.glob("[!.]*") if (p / "manifest.json").exists()] if folder.is_dir() else []
        return sorted(runs, key=lambda r: (r.manifest.get("created", 0), r.name), reverse=True)

    def newest(self, algorithms: tuple[str, ...]) -> RunFolder | None:
        """The newest finished run of the first of these algorithms that has one, or None."""
        finished = [r for r in self.runs() if (r.model / "config.json").exists()]
        for algorithm in algorithms:
            for run in finished:
                if run.manifest.get("algorithm") == algorithm:
                    return run
        return None

    def new_name(self, stem: str, hold: Callable[[str], bool] = lambda name: True) -> str:
        """A run name that is not in use, STEM-DATE-NUMBER: the first one for which `hold` is true."""
        day = time.strftime("%Y%m%d")
        number = 1
        while self.run(f"{stem}-{day}-{number}").path.exists() or not hold(f"{stem}-{day}-{number}"):
            number += 1
        return f"{stem}-{day}-{number}"


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of the files in a folder. If the folder has an index, only that is
    hashed, as it contains the hashes of all files."""
    total = hashlib.sha256()
    index = path / "index.json"
    files = [path] if path.is_file() else [index] if index.exists() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: to a temporary file beside it, which is flushed to disk and renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def find_model(text: str, workspace: Workspace) -> Path:
    """The model folder that a run's name or a path refers to; the newest checkpoint of a run without a finished model.

    `NAME@best` is the model that `--keep-best` kept, `NAME@STEP` the checkpoint of that step. Raises UsageError if there is no
    such model.
    """
    path = Path(text)
    if (path / "config.json").exists():
        return path
    name, _, version = text.rpartition("@")
    if run := _find_run(name, workspace):
        return _find_version(run, version)
    run = _find_run(text, workspace)
    if run is None:
        names = [r.name for r in workspace.runs()]
        raise UsageError(f"No model at {text!r}: neither a run of this workspace nor a model folder.{close_match(text, names)}")
    if (run.model / "config.json").exists():
        return run.model
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
    return next((RunFolder(path) for path in parents[:2] if (path / "manifest.json").exists()), None)


def _find_run(text: str, workspace: Workspace) -> RunFolder | None:
    path = Path(text).resolve()
    return next((r for r in workspace.runs() if text and (r.name == text or r.path.resolve() == path)), None)


def _find_version(run: RunFolder, version: str) -> Path:
    """The folder of `NAME@version`. Raises UsageError that lists the versions of the run."""
    versions = {"best": run.best} if run.best.exists() else {}
    versions |= {str(step_of(path)): path for path in checkpoints(run.checkpoints)}
    if version not in versions:
        known = ", ".join(f"{run.name}@{key}" for key in versions) or "none"
        raise UsageError(f"Run {run.name} has no model {run.name}@{version}. It has: {known}.")
    return versions[version]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder of checkpoints, oldest first."""
    return sorted(folder.glob("step-*[0-9]")) if folder.is_dir() else []


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; 0 if it has none."""
    match = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(match.group(1)) if match else 0
