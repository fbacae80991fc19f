"""A short training by the trainer, with checkpoints, on rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_model

from mm.core.settings import TrainSettings
from mm.runtime.data.order import RowOrder
from mm.runtime.data.source import Position
from mm.runtime.data.store import Store
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import WEIGHTS, LoadedModel
from mm.runtime.nn.batch import Unit, pack
from mm.runtime.text.rows import Row
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.checkpoint import load_checkpoint
from mm.runtime.training.distributed import World
from mm.runtime.training.feed import Feed
from mm.runtime.training.objective import Objective
from mm.runtime.training.roles import Role
from mm.runtime.training.saver import Saver
from mm.runtime.training.state import TrainState
from mm.runtime.training.trainer import Trainer

if TYPE_CHECKING:
    from mm.core.callback import Callback
    from mm.runtime.text.tokenizer import Tokenizer

MoreRows = Callable[[int], list[Unit]]


class UnitStore(Store):
    """Units in memory, and the rows that they were made of."""

    def __init__(self, units: Sequence[Unit], rows: Sequence[Row]) -> None:
        self.units, self.rows, self.digest = list(units), list(rows), "rows"
        self.lengths = np.array([sum(len(sequence.ids) for sequence in unit.sequences) for unit in self.units])
        self.hashes = np.arange(len(self.units), dtype=np.uint64)

    def unit(self, index: int) -> Unit:
        """See `Store.unit`."""
        return self.units[index]

    def position(self, index: int) -> Position:
        """See `Store.position`."""
        return Position(path="rows", line=index + 1)

    def row(self, index: int) -> Row:
        """See `Store.row`."""
        return self.rows[index]


class ShortTraining:
    """A training on all of the data at each step, in float32 on the CPU, with checkpoints in `folder`. With `resume_at` it
    begins from the checkpoint of that step.

    `make(roles, more_rows)` makes the algorithm, which takes `batch_steps` optimizer steps on a batch.
    """

    def __init__(
        self,
        make: Callable[[dict[str, Role], MoreRows], Algorithm],
        roles: dict[str, Role],
        store: UnitStore,
        tokenizer: Tokenizer,
        folder: Path,
        *,
        steps: int,
        batch_steps: int = 1,
        save_interval: int | None = None,
        resume_at: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        checkpoint, self.resumed_at = folder / f"step-{resume_at or 0:08d}", resume_at
        model = roles["policy"].model
        if resume_at:  # as a run does, which opens its model from the checkpoint
            load_model(model, checkpoint / WEIGHTS, strict=True)
        settings = TrainSettings(
            learning_rate=1e-3, max_steps=steps, schedule="constant", weight_decay=0.0, dtype="fp32", log_interval=2,
            save_minutes=None, save_interval=save_interval, background_save=False, keep_checkpoints=steps,
        )  # fmt: skip
        count = len(store)
        feed = Feed(store, RowOrder(count, 0), count, World(), batch_steps)
        algorithm = make(roles, feed.take)
        feed.order = algorithm.order(feed.order, range(count))
        self.state = TrainState(
            settings=settings, backend=Backend(), world=World(), roles=roles, algorithm=algorithm, feed=feed, callbacks=callbacks
        )
        saver = Saver(LoadedModel("policy", model.config, model, tokenizer), folder, World()) if save_interval else None
        # nothing calls the algorithm outside of its steps; callbacks are given the figure of one held-out row
        evaluate = {"loss": 1.0} if callbacks else {}
        self._trainer = Trainer(self.state, evaluate=lambda state: dict(evaluate), saver=saver)
        if resume_at:
            load_checkpoint(self.state, checkpoint)

    def fit(self) -> None:
        """Train to the end. Raises MMError if a gradient is not finite."""
        self._trainer.fit()

    def loss_of(self, units: list[Unit]) -> float:
        """The present loss of units."""
        return self.loss(self.state.algorithm, self.state.roles, units)

    @staticmethod
    @torch.no_grad()
    def loss(algorithm: Algorithm, roles: dict[str, Role], units: list[Unit]) -> float:
        """The loss of units as one micro-batch."""
        objective, batch = Objective(algorithm, roles), pack(units)
        return float(objective.loss(batch, objective.totals([batch]))[0])
