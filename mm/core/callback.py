"""The contract of a callback, and the view of a training that its events receive. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mm.core.settings import TrainSettings


class RankView(Protocol):
    """This process among the ranks of a training."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    @property
    def main(self) -> bool:
        """True on the rank that writes and prints."""

    @property
    def local_rank(self) -> int:
        """The number of this rank on its machine, from 0; also the index of the card it uses."""


class StopRequest(Protocol):
    """Lets a callback stop a training early."""

    def ask(self, reason: str, *, done: bool = False) -> None:
        """Ask to stop after the present step or evaluation. All ranks agree first; the first reason goes into the manifest.
        `done`: the run is finished, nothing is left to resume."""


class TrainingView(Protocol):
    """The attributes of a training that a callback may read."""

    @property
    def step(self) -> int:
        """Optimizer steps taken."""

    @property
    def horizon(self) -> int:
        """The step at which the schedule ends."""

    @property
    def tokens(self) -> int:
        """Tokens trained on so far, over all ranks."""

    @property
    def seconds(self) -> float:
        """Seconds spent in the training loop so far, those before a resume included."""

    @property
    def settings(self) -> TrainSettings:
        """The common settings of the run."""

    @property
    def roles(self) -> Mapping[str, Any]:
        """The models by role (`mm.runtime.training.roles.Role`)."""

    @property
    def world(self) -> RankView:
        """This process among the ranks."""

    @property
    def stop(self) -> StopRequest:
        """Stops the training early."""

    @property
    def backend(self) -> Any:
        """The backend (`mm.contracts.Backend`)."""

    @property
    def dtype(self) -> str:
        """The compute type: "fp32", "bf16" or "fp16"."""

    def log_scheduled(self) -> bool:
        """True if the metrics are logged at this step: at the last one and at multiples of `--log-interval`."""

    def peek(self) -> Mapping[str, float]:
        """The metrics since they were last logged, of this rank alone. Reading them waits for the device."""

    def evaluation_scheduled(self) -> bool:
        """True if a run that is never stopped evaluates at this step: at 0, the last, and after each interval."""


class Callback:
    """Watches a run. Override the events you want; a tracker is a callback with a config.

    `on_step` is called after each optimizer step and must not read device tensors (it would synchronise). Checkpoints save a
    callback's state under `name`, by default the name of the class: set it, so that the class can be renamed. One that only
    observes is not `required`: if it raises, that is reported, it is left out, and the run goes on.
    """

    name: ClassVar[str] = ""
    required: ClassVar[bool] = True
    events: ClassVar[tuple[str, ...]] = ("on_start", "on_step", "on_evaluate", "on_log", "on_save", "on_end")

    def on_start(self, run: TrainingView) -> None:
        """Before the first step."""

    def on_step(self, run: TrainingView) -> None:
        """After an optimizer step."""

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """After an evaluation on the held-out rows."""

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """After the metrics of a log interval have been read by the host."""

    def on_save(self, run: TrainingView, path: Path) -> None:
        """After a checkpoint is complete. This may be some steps after the step that it saves."""

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """After the last step, or after the error that ended the run."""

    def state_dict(self) -> dict[str, Any]:
        """The state that an exact resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
