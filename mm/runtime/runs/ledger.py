"""The record of what the stages of a pipeline have made, and from which inputs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import attrs

from mm.core.records import StageSpec
from mm.core.workspace import write_text
from mm.runtime.runs.attempt import attempt
from mm.runtime.runs.stage import StageResult

LEDGER = "stages.json"  # its file in the workspace's cache
POLL_SECONDS = 0.05


def waits(stage: StageSpec, other: StageSpec) -> bool:
    """True if `other` gives an artifact that `stage` needs, or that matches a pattern in its `after`."""
    return any(given in stage.needs or any(fnmatchcase(given, p) for p in stage.after) for given in other.gives)


@attrs.define
class Ledger:
    """The record of the artifacts of each stage and a hash of its inputs, in one small file that may be deleted."""

    path: Path

    def read(self) -> dict[str, Any]:
        """stage -> {inputs, artifacts, summary, closing}."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}  # type: ignore[no-any-return]

    def artifacts(self) -> dict[str, Path]:
        """Every artifact that still exists."""
        recorded = {n: Path(p) for entry in self.read().values() for n, p in entry["artifacts"].items()}
        return {name: path for name, path in recorded.items() if path.exists()}

    def current(self, stage: str, inputs: str) -> dict[str, Path] | None:
        """The artifacts of a stage, if it has run on these inputs and all of them still exist; otherwise None."""
        entry = self.read().get(stage)
        if entry is None or entry["inputs"] != inputs:
            return None
        artifacts = {name: Path(path) for name, path in entry["artifacts"].items()}
        return artifacts if all(path.exists() for path in artifacts.values()) else None

    def awaited(self, stage: str, inputs: str) -> StageResult:
        """The result that the main rank records for a stage; waits for it. If that rank fails, the launcher ends this one."""
        while (entry := self.by_this_attempt(stage, inputs)) is None:
            time.sleep(POLL_SECONDS)
        paths = {name: Path(path) for name, path in entry["artifacts"].items()}
        return StageResult(paths, entry["summary"], entry.get("closing", ""))

    def by_this_attempt(self, stage: str, inputs: str) -> dict[str, Any] | None:
        """The entry of a stage that the main rank has written since the launcher has started this rank, or None."""
        entry = self.read().get(stage, {})
        return entry if (entry.get("inputs"), entry.get("attempt")) == (inputs, attempt()) else None

    def write(self, stage: str, inputs: str, result: StageResult) -> None:
        """Record the result of a stage."""
        entry = {
            **attrs.asdict(result), "inputs": inputs, "artifacts": {n: str(p) for n, p in result.artifacts.items()},
            **({"attempt": attempt()} if attempt() else {}),
        }  # fmt: skip
        write_text(self.path, json.dumps({**self.read(), stage: entry}, indent=1))


def digest(values: Mapping[str, Any]) -> str:
    """The SHA-256 of a stage's inputs."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
