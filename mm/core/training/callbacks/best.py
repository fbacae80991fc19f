"""Keeping the model with the lowest held-out loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mm.core.contracts import Callback
from mm.core.errors import UsageError
from mm.core.training.models import LoadedModel, save_model_folder
from mm.core.training.storage import whole_folder
from mm.core.workspace import RunFolder

if TYPE_CHECKING:
    from mm.core.training.trainer import Trainer

_EVALUATION = "evaluation.json"


def counts(trainer: Trainer) -> bool:
    """Whether evaluations are compared here: not before the first step, and not where only a stop made one, for the run
    that was never stopped has none there."""
    return trainer.progress.step > 0 and trainer.evaluation_scheduled()


def held_out_loss(metrics: Mapping[str, float], option: str) -> float:
    """The loss that evaluations are compared by. Raises UsageError when the algorithm measures none."""
    if "loss" not in metrics:
        raise UsageError(f"{option} compares the held-out loss, and this algorithm measures only {', '.join(metrics)}.")
    return metrics["loss"]


class KeepBest(Callback):
    """Writes the model to `folder.best` whenever its held-out loss is the lowest so far; stands on the main rank.

    The folder says what it holds, so a resumed run goes on from there: steps that are made again give the same losses,
    which are not lower. It is a model without the state of a training, a third of a checkpoint.
    """

    def __init__(self, folder: RunFolder, loaded: LoadedModel, say: Callable[[str], None]) -> None:
        self.folder, self.loaded, self.say = folder, loaded, say
        self.best = math.inf

    def on_start(self, trainer: Trainer) -> None:
        """Read what an earlier part of the run has kept."""
        path = self.folder.best / _EVALUATION
        if path.exists():
            self.best = json.loads(path.read_text(encoding="utf-8"))["loss"]

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Keep the model where it is better than the one that is kept."""
        if not counts(trainer) or not held_out_loss(metrics, "--keep-best") < self.best:
            return
        self.best, step = metrics["loss"], trainer.progress.step
        with whole_folder(self.folder.best) as path:
            save_model_folder(path, self.loaded, merged=True)
            (path / _EVALUATION).write_text(json.dumps({"step": step, **metrics}, indent=2), encoding="utf-8")
        self.folder.update_manifest({"best": {"step": step, "loss": self.best, "model": f"{self.folder.name}@best"}})

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Say which one it was."""
        if best := self.folder.manifest.get("best"):
            self.say(f"best: held-out loss {best['loss']:.4g} at step {best['step']}, kept as {best['model']}")
