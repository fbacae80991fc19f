"""Recording metrics as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mm.contracts import Tracker
from mm.core.callback import TrainingView
from mm.core.workspace import RunFolder
from mm.runtime.training.json_lines import METRICS, append_lines, rewind_lines


class Jsonl(Tracker):
    """Appends one JSON object per log interval and one per evaluation, the latter with `held_out/` before each name."""

    name = "jsonl"
    required = True  # the run's own record: `mm runs`, curves and a resume read it

    def __init__(self, config: None, folder: RunFolder) -> None:
        super().__init__(config, folder)
        self.path: Path = folder.path / METRICS

    def on_start(self, run: TrainingView) -> None:
        """On a resume, remove the lines of later steps: these steps will be repeated."""
        rewind_lines(self.path, run.step)

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        append_lines(self.path, [{**metrics, "seconds": round(run.seconds, 3)}])

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        held_out = {f"held_out/{name}": value for name, value in metrics.items()}
        append_lines(self.path, [{"step": run.step, **held_out, "seconds": round(run.seconds, 3)}])
