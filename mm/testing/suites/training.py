"""A short training in memory, for the checks of algorithms: run, saved as a checkpoint saves it, and resumed."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch

from mm.core.settings import TrainSettings
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Unit, pack
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.distributed import World
from mm.runtime.training.roles import Role
from mm.runtime.training.state import TrainState
from mm.runtime.training.trainer import Trainer


class ShortTraining:
    """A training whose batches all have the same rows."""

    def __init__(self, algorithm: Algorithm, roles: dict[str, Role], batches: int) -> None:
        settings = TrainSettings(learning_rate=1e-3, max_steps=batches, schedule="constant", weight_decay=0.0, dtype="fp32")
        self.state = TrainState(
            settings=settings, backend=Backend(), world=World(), roles=roles, algorithm=algorithm,
            feed=None,  # type: ignore[arg-type]
        )  # fmt: skip
        self._trainer = Trainer(self.state, evaluate=lambda state: {})

    def run(self, units: Sequence[Unit], batches: int) -> list[float]:
        """Train on `batches` batches. Returns the loss of each before its first step."""
        state, losses = self.state, []
        for _ in range(batches):
            with torch.no_grad():
                mini_batches = state.algorithm.prepare(list(units))
                batch = pack(mini_batches[0])
                loss, _ = state.objective.loss(batch, state.objective.totals([batch]))
            losses.append(float(loss))
            for mini_batch in mini_batches:
                self._trainer.train_step(mini_batch)
                if state.algorithm.after_step(state.step):
                    break
            self._trainer.check()
        return losses

    def save(self) -> bytes:
        """A checkpoint: the weights, the optimizers' states and the algorithm's state."""
        state, buffer = self.state, io.BytesIO()
        optimizers = {name: [o.state_dict() for o in found] for name, found in state.updates.optimizers.items()}
        models = {name: role.model.state_dict() for name, role in state.roles.items()}
        algorithm = state.algorithm.state_dict()
        torch.save({"models": models, "optimizers": optimizers, "algorithm": algorithm, "step": state.step}, buffer)
        return buffer.getvalue()

    def restore(self, saved: bytes) -> None:
        """Restore the state that `save` returned."""
        state, held = self.state, torch.load(io.BytesIO(saved), weights_only=True)
        for name, role in state.roles.items():
            role.model.load_state_dict(held["models"][name])
        for name, optimizers in state.updates.optimizers.items():
            for optimizer, value in zip(optimizers, held["optimizers"][name], strict=True):
                optimizer.load_state_dict(value)
        state.algorithm.load_state_dict(held["algorithm"])
        state.step = held["step"]
