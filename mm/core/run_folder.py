"""The folder of one run: the paths in it and its manifest, which a power cut or an editor may have damaged."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import CheckpointError
from mm.core.locks import is_locked
from mm.core.say import command_line

MANIFEST, SETTINGS = "manifest.json", "run.toml"

_NUMBER = (int, float)
# field -> its type, for all fields that are read again; `state` is always there
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("state", "algorithm", "architecture", "stop_reason", "error"), str),
    **dict.fromkeys(("created", "order", "seconds"), _NUMBER),
    **dict.fromkeys(("step", "steps", "tokens", "parameters"), int),
    **dict.fromkeys(("data", "eval_data", "notes", "plugin_options"), list),
    **dict.fromkeys(("settings", "sources", "versions", "plugins", "parts", "backend", "roles", "best", "cut_interval"), dict),
}
_PART = {"locator": str, "digest": str, "rows": int, "tokens": int}
_LAST_DATE = 2**40  # seconds since 1970: a larger number has no date


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
        state, name = "damaged" if self.damage else self.manifest["state"], shlex.quote(self.name)
        if is_locked(self.path / ".lock"):
            cure = "a process is training it: choose another --run."
        elif state in ("damaged", "finished"):
            cure = f"it is {state}: choose another --run, or remove it with mm runs rm {name}."
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
        """The run's state, versions, plugins, hashes of its data, settings and their origins; empty if there is no run.

        Raises CheckpointError, with the ways to continue, if it is damaged or missing.
        """
        path = self.path / MANIFEST
        try:
            return read_manifest(path)
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not (self.path / SETTINGS).exists():
                return {}
            reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{path} cannot be read: {reason}. {self.lost_message}")

    @property
    def lost_message(self) -> str:
        """The ways to continue after a file that a resume needs is lost."""
        saved = (self.model / "config.json").exists() or bool(checkpoints(self.checkpoints))
        again = f"start a new run from its model with --from {shlex.quote(self.name)}, " if saved else ""
        return f"Restore it from a copy, {again}or remove the run with {command_line('runs', 'rm', self.name)}."

    @property
    def damage(self) -> str:
        """The error message of a damaged manifest; "" if it can be read."""
        try:
            return "" if self.manifest else f"Run {self.name} has no manifest."
        except CheckpointError as error:
            return str(error)

    @property
    def order(self) -> float:
        """The place of the run among others: larger for newer ones, 0 for a damaged one."""
        manifest = {} if self.damage else self.manifest
        return float(manifest.get("order", manifest.get("created", 0)))

    def update_manifest(self, values: Mapping[str, Any]) -> None:
        """Merge top-level values into the manifest, atomically."""
        write_text(self.path / MANIFEST, json.dumps({**self.manifest, **values}, indent=2, ensure_ascii=False))


def is_run(path: Path) -> bool:
    """True for the folder of a run, also of one that is damaged or may not be read."""
    try:
        return any((path / name).exists() for name in (MANIFEST, SETTINGS))
    except OSError:
        return True


def read_manifest(path: Path) -> dict[str, Any]:
    """The values of a manifest. Raises ValueError with the reason if it is damaged, OSError if it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict) or "state" not in values:
        raise ValueError("it is not a JSON object with the state of a run")
    _check(values, _TYPES)
    for part in (*values.get("data", ()), *values.get("eval_data", ())):
        if not isinstance(part, dict) or not part.keys() >= _PART.keys():
            raise ValueError("an entry of its data is incomplete")
        _check(part, _PART)
    for name in ("created", "order"):
        if not 0 <= values.get(name, 0) < _LAST_DATE:
            raise ValueError(f"its {name} is {values[name]}, which is no time")
    return values


def _check(values: dict[str, Any], types: dict[str, Any]) -> None:
    for name, kind in types.items():
        if name in values and not isinstance(values[name], kind):
            raise ValueError(f"its {name} is {str(values[name])[:40]!r}")


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a failed write has none, or the temporary one
        raise


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder of checkpoints, oldest first."""
    return sorted(folder.glob("step-*[0-9]")) if folder.is_dir() else []


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; 0 if it has none."""
    match = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(match.group(1)) if match else 0
