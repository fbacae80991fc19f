"""Recording metrics as TensorBoard scalars, with the writer in torch.utils.tensorboard."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.contracts import Tracker
from mm.core.errors import UsageError
from mm.core.workspace import RunFolder
from mm.plugins.extras import install_command

if TYPE_CHECKING:
    from mm.core.callback import TrainingView


class Tensorboard(Tracker):
    """Writes event files to `tensorboard/` in the run's folder. Training metrics keep their names; those of evaluations have
    `held_out/` before them. `tensorboard --logdir runs` shows all runs of a workspace."""

    name = "tensorboard"

    def __init__(self, config: None, folder: RunFolder) -> None:
        super().__init__(config, folder)
        try:
            self.package: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UsageError(
                f"--tracker tensorboard: the package cannot be imported ({error}). Install it: "
                f"{install_command('trackers')}"
            ) from None
        self.path = folder.path / "tensorboard"

    def on_start(self, run: TrainingView) -> None:
        """Open an event file. On a resume the curves continue: TensorBoard discards the points of later steps, which will be
        repeated."""
        step = run.step
        self.writer = self.package.SummaryWriter(self.path, purge_step=step + 1 if step else None)

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Write one scalar per metric."""
        self._add(run, {name: value for name, value in metrics.items() if name != "step"})

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Write one scalar per metric."""
        self._add(run, {f"held_out/{name}": value for name, value in metrics.items()})

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """Write buffered scalars and close the file."""
        if hasattr(self, "writer"):
            self.writer.close()

    def _add(self, run: TrainingView, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, global_step=run.step)
        self.writer.flush()
