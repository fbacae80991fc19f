"""The contract of an algorithm: what is learned. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mm.core.errors import CheckpointError
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
    generators and more rows. `watch` names metrics that are reported once when they leave a range, with its meaning.
    `state` names the attributes that an exact resume needs beside the models, in addition to those of the base class: numbers,
    strings, tensors and collections of them, or objects with `state_dict` and `load_state_dict` of their own.
    """

    watch: ClassVar[Mapping[str, Watch]] = {}
    state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, models: Mapping[str, Role], context: Context) -> None:
        self.config, self.models, self.context = config, models, context

    def order(self, order: Order, rows: Sequence[int]) -> Order:
        """Which of the training `rows` come next; `order` is the default."""
        return order

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        """This rank's rows -> mini-batches, one optimizer step each; called without gradients (rollouts, rewards)."""
        return [units]

    def counts(self, batch: Packed) -> dict[str, float]:
        """Counts that the loss divides by beside those which `Totals` has by itself, as host numbers; summed over
        micro-batches and ranks before any backward."""
        return {}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """This micro-batch's share of the loss, already divided, and metrics as detached (sum, count) or `Largest`."""
        raise NotImplementedError

    def evaluate(self, units: list[Unit]) -> Metrics | None:
        """Metrics of this rank's held-out rows, where the loss is not what they are judged by (rollouts); None: the
        loss's metrics are. Called without gradients, on rows that no `prepare` has seen."""
        return None

    def after_step(self, step: int) -> bool:
        """Called after an optimizer step; True drops the rest of this `prepare`'s mini-batches, on every rank."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The attributes that `state` names, of this class and those it derives from."""
        held = {name: getattr(self, name) for name in self._state_names()}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in held.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises CheckpointError for an attribute that was not saved."""
        for name in self._state_names():
            if name not in state:
                raise CheckpointError(f"The checkpoint has no {name!r} of {type(self).__name__}: another version saved it.")
            held = getattr(self, name)
            if hasattr(held, "load_state_dict"):
                held.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])

    def _state_names(self) -> list[str]:
        return [name for cls in reversed(type(self).__mro__) for name in vars(cls).get("state", ())]
