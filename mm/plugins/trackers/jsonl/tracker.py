"""Metrics as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mm.core.contracts import Callback
from mm.core.training.trainer import Trainer
from mm.core.workspace import RunFolder


class Jsonl(Callback):
    """Appends one object a log interval, and one an evaluation with its names prefixed `held_out/`."""

    def __init__(self, config: None, folder: RunFolder) -> None:
        self.path: Path = folder.path / "metrics.jsonl"

    def on_start(self, trainer: Trainer) -> None:
        """On a resume, drop the lines of steps that will be made again."""
        if self.path.exists():
            # a line that a crash cut off in the middle has no end; its step is made again
            lines = [line for line in self.path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
            kept = [line.rstrip("\n") for line in lines if json.loads(line)["step"] <= trainer.progress.step]
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """One line."""
        self._append({**metrics, "seconds": round(trainer.progress.seconds, 3)})

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """One line."""
        held = {f"held_out/{name}": value for name, value in metrics.items()}
        self._append({"step": trainer.progress.step, **held, "seconds": round(trainer.progress.seconds, 3)})

    def _append(self, values: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
