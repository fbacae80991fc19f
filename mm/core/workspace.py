"""The workspace: the folder that holds runs, tokenizers, data and the token cache, and the runs in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import CheckpointError, UsageError, close_match

ADAPTER = "adapter"  # a model folder's, where it has one


@attrs.frozen
class RunFolder:
    """One run's folder. Its manifest says what made it and how it stands."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: the folder's."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.path / "model"

    @property
    def best(self) -> Path:
        """The model with the lowest held-out loss, where `--keep-best` keeps it."""
        return self.path / "best"

    @property
    def exists_message(self) -> str:
        """What to say to who would start a run of this name: how to go on, as the run stands."""
        if self.manifest.get("state") == "finished":
            cure = f"it is finished: choose another --run, or remove it with mm runs rm {self.name}."
        elif checkpoints(self.checkpoints):
            cure = f"go on with --resume --run {self.name}, or choose another --run."
        else:
            cure = f"it has saved nothing yet: choose another --run, or remove it with mm runs rm {self.name}."
        return f"Run {self.name} exists; {cure}"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def evals(self) -> Path:
        """Reports of evaluations, one JSON file each."""
        return self.path / "evals"

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, plugins, data hashes, value sources and the state of the run; empty where there is none."""
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
    """A folder; `MM_WORKSPACE` or the current one."""

    path: Path

    @classmethod
    def here(cls) -> Workspace:
        """The workspace of this process."""
        return cls(Path(os.environ.get("MM_WORKSPACE", ".")))

    @property
    def cache(self) -> Path:
        """Token caches and stage stamps; may be deleted at any time."""
        return self.path / ".mm"

    def run(self, name: str) -> RunFolder:
        """The folder of that name, whether it exists or not."""
        if not name or name != Path(name).name or name.startswith("."):
            raise UsageError(f"--run {name!r}: a run's name is one folder name, without '/'.")
        return RunFolder(self.path / "runs" / name)

    def existing(self, name: str) -> RunFolder:
        """The run of that name. Raises UsageError with close matches when there is none."""
        run = self.run(name)
        if not run.path.is_dir():
            names = [r.name for r in self.runs()]
            raise UsageError(f"No run {name!r} in {self.path / 'runs'}.{close_match(name, names)}")
        return run

    def runs(self) -> list[RunFolder]:
        """All runs, the newest first."""
        folder = self.path / "runs"
        found = [RunFolder(p) for p in folder.glob("[!.]*") if (p / "manifest.json").exists()] if folder.is_dir() else []
        return sorted(found, key=lambda r: (r.manifest.get("created", 0), r.name), reverse=True)

    def newest(self, algorithms: tuple[str, ...]) -> RunFolder | None:
        """The newest finished run of one of these algorithms, earlier algorithms first."""
        finished = [r for r in self.runs() if (r.model / "config.json").exists()]
        for algorithm in algorithms:
            for run in finished:
                if run.manifest.get("algorithm") == algorithm:
                    return run
        return None

    def new_name(self, stem: str) -> str:
        """A free run name: stem-date-number."""
        day = time.strftime("%Y%m%d")
        number = 1
        while self.run(f"{stem}-{day}-{number}").path.exists():
            number += 1
        return f"{stem}-{day}-{number}"


def fingerprint(path: Path) -> str:
    """A hash of a file, or of a folder's files and their content; a model folder's own index stands for its content."""
    total = hashlib.sha256()
    index = path / "index.json"
    files = [path] if path.is_file() else [index] if index.exists() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary file beside it, fsynced, then renamed over it."""
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


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder. Raises UsageError when there is none."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no model: it has no config.json.") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def find_model(text: str, workspace: Workspace) -> Path:
    """The model folder that a run's name or a path means; a run without a finished model gives its newest checkpoint.

    `NAME@best` is what `--keep-best` kept, `NAME@STEP` the checkpoint of that step.
    """
    path = Path(text)
    if (path / "config.json").exists():
        return path
    name, _, mark = text.rpartition("@")
    if run := _run_of(name, workspace):
        return _marked(run, mark)
    run = _run_of(text, workspace)
    if run is None:
        names = [r.name for r in workspace.runs()]
        raise UsageError(f"No model at {text!r}: neither a run of this workspace nor a model folder.{close_match(text, names)}")
    if (run.model / "config.json").exists():
        return run.model
    if found := checkpoints(run.checkpoints):
        return found[-1]
    raise UsageError(f"Run {run.name} has no model yet.")


def find_adapter(text: str, workspace: Workspace) -> Path:
    """The saved adapter that a run's name (also `NAME@STEP`), a run's or model's folder, or a path means.

    Raises UsageError when there is nothing of that name; what lies there is for the adapter to judge.
    """
    named = _run_of(text, workspace) or _run_of(text.rpartition("@")[0], workspace)
    folder = find_model(text, workspace) if named else Path(text)
    if not folder.exists():
        near = close_match(text, [run.name for run in workspace.runs()])
        raise UsageError(f"No adapter at {text!r}: no run of this workspace, and no such folder or file.{near}")
    return folder / ADAPTER if (folder / ADAPTER).is_dir() else folder


def run_of(folder: Path) -> RunFolder | None:
    """The run that a model folder or checkpoint belongs to, or None."""
    parents = folder.resolve().parents
    return next((RunFolder(path) for path in parents[:2] if (path / "manifest.json").exists()), None)


def _run_of(text: str, workspace: Workspace) -> RunFolder | None:
    path = Path(text).resolve()
    return next((r for r in workspace.runs() if text and (r.name == text or r.path.resolve() == path)), None)


def _marked(run: RunFolder, mark: str) -> Path:
    found = {"best": run.best} if run.best.exists() else {}
    found |= {str(step_of(path)): path for path in checkpoints(run.checkpoints)}
    if mark not in found:
        known = ", ".join(f"{run.name}@{key}" for key in found) or "none"
        raise UsageError(f"Run {run.name} has no model {run.name}@{mark}. It has: {known}.")
    return found[mark]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    return sorted(folder.glob("step-*[0-9]")) if folder.is_dir() else []


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    found = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(found.group(1)) if found else 0
