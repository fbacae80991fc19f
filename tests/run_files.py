"""Reading what a run wrote, and writing rows for one to read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm.core.workspace import RunFolder

Line = dict[str, Any]


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSON lines; a row that is a text already is a line as it is. Returns the path."""
    texts = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def lines(run: RunFolder, file: str = "metrics.jsonl") -> list[Line]:
    """The lines of a file of a run, without the seconds that a step took: they are never the same twice."""
    read = [json.loads(text) for text in (run.path / file).read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read]


def logged(run: RunFolder) -> list[Line]:
    """The metrics of the training steps."""
    return [line for line in lines(run) if "learning_rate" in line]


def held_out(run: RunFolder) -> list[Line]:
    """The metrics of the evaluations."""
    return [line for line in lines(run) if "learning_rate" not in line]


def series(run: RunFolder, name: str) -> list[Any]:
    """One metric of the training steps, where they have it."""
    return [line[name] for line in logged(run) if name in line]


def weights(model: RunFolder | Path) -> bytes:
    """The weights of a run's model or of a model folder, to the bit."""
    folder = model if isinstance(model, Path) else model.model
    return (folder / "model.safetensors").read_bytes()
