"""Keeping the best model: by the lowest held-out loss or, for an algorithm that reports none, the highest reward."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from mm.core.callback import Callback
from mm.core.errors import CheckpointError, UsageError
from mm.core.workspace import RunFolder
from mm.runtime.models.folder import LoadedModel, save_model_folder
from mm.runtime.models.storage import atomic_folder, verify

if TYPE_CHECKING:
    from mm.core.callback import TrainingView

_EVALUATION = "evaluation.json"
_SIGNS = {"loss": 1, "reward": -1}


def is_comparable(run: TrainingView) -> bool:
    """True if the evaluation at this step is compared with others. Not before the first step, and not if it is made only
    because the run stops here: a run that is never stopped makes none."""
    return run.step > 0 and run.evaluation_scheduled()


@attrs.frozen
class ComparedMetric:
    """The metric by which evaluations are compared. A lower `cost` is better: it is the value, negated for a reward."""

    name: str
    cost: float

    @classmethod
    def of(cls, metrics: Mapping[str, float], option: str) -> ComparedMetric:
        """The held-out loss or, without one, the reward. Raises UsageError naming `option` if `metrics` has neither."""
        for name, sign in _SIGNS.items():
            if name in metrics:
                return cls(name, sign * metrics[name])
        raise UsageError(f"{option} compares the held-out loss or reward, and this algorithm measures only {', '.join(metrics)}.")

    @property
    def value(self) -> float:
        """The value of the metric."""
        return _SIGNS[self.name] * self.cost

    def __str__(self) -> str:
        return f"held-out {self.name} {self.value:.4g}"


class KeepBest(Callback):
    """Writes the model to `folder.best` whenever its held-out loss or reward is the best so far. Only on the main rank.

    The folder holds the evaluation too, from which a resumed run takes the best value. Steps that a resume repeats give equal
    values, so the model is not written again. It is a model without training state, a third of a checkpoint's size.
    """

    name = "keep-best"

    def __init__(self, folder: RunFolder, loaded: LoadedModel, say: Callable[[str], None]) -> None:
        self.folder, self.loaded, self.say = folder, loaded, say
        self.best = math.inf

    def on_start(self, run: TrainingView) -> None:
        """On a resume, read the value of the best model so far. A damaged one is reported, and the next one takes its place."""
        if not self.folder.best.exists():
            return
        try:
            verify(self.folder.best, required=(_EVALUATION,))
        except CheckpointError as error:
            self.say(f"best: {error} The best model from here on is kept instead.")
            return
        values = json.loads((self.folder.best / _EVALUATION).read_text(encoding="utf-8"))
        metric = ComparedMetric.of(values, "--keep-best")
        self.best = metric.cost
        self._record(values["step"], metric)  # a process may have been killed before it recorded the model that it kept

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Write the model if it is better than the one that was kept."""
        if not is_comparable(run) or not (metric := ComparedMetric.of(metrics, "--keep-best")).cost < self.best:
            return
        self.best, step = metric.cost, run.step
        with atomic_folder(self.folder.best) as path:
            save_model_folder(path, self.loaded, merged=True)
            (path / _EVALUATION).write_text(json.dumps({"step": step, **metrics}, indent=2), encoding="utf-8")
        self._record(step, metric)

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """Report the step and value of the best model."""
        if best := self.folder.manifest.get("best"):
            self.say(f"best: {ComparedMetric.of(best, '--keep-best')} at step {best['step']}, kept as {best['model']}")

    def _record(self, step: int, metric: ComparedMetric) -> None:
        self.folder.update_manifest({"best": {"step": step, metric.name: metric.value, "model": f"{self.folder.name}@best"}})
