"""The contract of an algorithm: what is learned. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mm.runtime.training.measures import Metrics, Totals, Watch

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.data.order import Order
    from mm.runtime.nn.batch import Packed, Unit
    from mm.runtime.training.context import Context
    from mm.runtime.training.roles import Role


class Algorithm:
    """What is learned. The trainer owns device, precision, accumulation, clipping, schedule, logging and resume.

    `models` maps each role that `needs` named to a `Role`; `context` gives the tokenizer, the engine, keyed random
    generators and more rows. `watch` names metrics whose leaving a range is said, with its meaning.
    """

    watch: ClassVar[Mapping[str, Watch]] = {}

    def __init__(self, config: Any, models: Mapping[str, Role], context: Context) -> None:
        self.config, self.models, self.context = config, models, context

    def order(self, order: Order, rows: Sequence[int]) -> Order:
        """What decides which of the training rows come next; `order` is the default."""
        return order

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        """This rank's rows -> mini-batches, one optimizer step each; called without gradients (rollouts, rewards)."""
        return [units]

    def counts(self, batch: Packed) -> dict[str, float]:
        """What the loss divides by, counted on the host; summed over micro-batches and ranks before any backward."""
        raise NotImplementedError

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """This micro-batch's share of the loss, already divided, and metrics as detached (sum, count) or `Largest`."""
        raise NotImplementedError

    def evaluate(self, units: list[Unit]) -> Metrics | None:
        """Metrics of this rank's held-out rows, where the loss is not what they are judged by (rollouts); None: the
        loss's metrics are. Called without gradients."""
        return None

    def after_step(self, step: int) -> bool:
        """Called after an optimizer step; True drops the rest of this `prepare`'s mini-batches, on every rank."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beyond the models."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
