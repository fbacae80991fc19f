"""Keeping the best model: that with the lowest held-out loss or, where an algorithm has none, the highest reward."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from mm.core.callback import Callback
from mm.core.errors import UsageError
from mm.core.storage import whole_folder
from mm.core.workspace import RunFolder
from mm.runtime.models.folder import LoadedModel, save_model_folder

if TYPE_CHECKING:
    from mm.core.callback import TrainingView

_EVALUATION = "evaluation.json"
_SIGNS = {"loss": 1, "reward": -1}


def is_comparable(run: TrainingView) -> bool:
    """Whether evaluations are compared here: not before the first step, and not where only a stop made one, for the run
    that was never stopped has none there."""
    return run.step > 0 and run.evaluation_scheduled()


@attrs.frozen
class Figure:
    """What evaluations are compared by; of its `cost` less is better."""

    name: str
    cost: float

    @classmethod
    def of(cls, metrics: Mapping[str, float], option: str) -> Figure:
        """The held-out loss, or the reward of an algorithm that draws. Raises UsageError when there is neither."""
        for name, sign in _SIGNS.items():
            if name in metrics:
                return cls(name, sign * metrics[name])
        raise UsageError(f"{option} compares the held-out loss or reward, and this algorithm measures only {', '.join(metrics)}.")

    @property
    def value(self) -> float:
        """The figure itself."""
        return _SIGNS[self.name] * self.cost

    def __str__(self) -> str:
        return f"held-out {self.name} {self.value:.4g}"


class KeepBest(Callback):
    """Writes the model to `folder.best` whenever its held-out figure is the best so far; stands on the main rank.

    The folder says what it holds, so a resumed run goes on from there: steps that are made again give the same figures,
    which are not better. It is a model without the state of a training, a third of a checkpoint.
    """

    name = "keep-best"

    def __init__(self, folder: RunFolder, loaded: LoadedModel, say: Callable[[str], None]) -> None:
        self.folder, self.loaded, self.say = folder, loaded, say
        self.best = math.inf

    def on_start(self, run: TrainingView) -> None:
        """Read what an earlier part of the run has kept."""
        path = self.folder.best / _EVALUATION
        if path.exists():
            self.best = Figure.of(json.loads(path.read_text(encoding="utf-8")), "--keep-best").cost

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Keep the model where it is better than the one that is kept."""
        if not is_comparable(run) or not (figure := Figure.of(metrics, "--keep-best")).cost < self.best:
            return
        self.best, step = figure.cost, run.step
        with whole_folder(self.folder.best) as path:
            save_model_folder(path, self.loaded, merged=True)
            (path / _EVALUATION).write_text(json.dumps({"step": step, **metrics}, indent=2), encoding="utf-8")
        self.folder.update_manifest({"best": {"step": step, figure.name: figure.value, "model": f"{self.folder.name}@best"}})

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """Say which one it was."""
        if best := self.folder.manifest.get("best"):
            self.say(f"best: {Figure.of(best, '--keep-best')} at step {best['step']}, kept as {best['model']}")
