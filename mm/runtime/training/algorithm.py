"""The contract of an algorithm, which defines the loss. Imports no torch."""

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
    """Defines what is learned: the mini-batches, the loss and its metrics. The trainer owns device, precision, accumulation,
    clipping, schedule, logging and resume.

    - `models` maps each role that `needs` names to a `Role`; `context` has the tokenizer, the engine, keyed random generators
      and more rows.
    - `watch`: metrics with their healthy ranges; the first time that one leaves its range is reported, with its meaning.
    - `state`: the names of the attributes that an exact resume needs besides the models, in addition to those of the base class.
      They are numbers, strings, tensors and collections of them, or objects with `state_dict` and `load_state_dict`.
    """

    watch: ClassVar[Mapping[str, Watch]] = {}
    state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, models: Mapping[str, Role], context: Context) -> None:
        self.config, self.models, self.context = config, models, context

    def order(self, order: Order, rows: Sequence[int]) -> Order:
        """The order in which the training `rows` are taken. `order` is the default one."""
        return order

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        """Make the mini-batches of this rank's rows, one per optimizer step. Called without gradients; rollouts and rewards
        belong here."""
        return [units]

    def counts(self, batch: Packed) -> dict[str, float]:
        """Further counts by which the loss divides, as host numbers; `Totals` has the usual ones already. They are summed over
        micro-batches and ranks before any backward."""
        return {}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """(this micro-batch's share of the loss, already divided by the totals; its metrics, detached (sum, count) or
        `Largest`)."""
        raise NotImplementedError

    def evaluate(self, units: list[Unit]) -> Metrics | None:
        """The metrics of this rank's held-out rows, for algorithms that are not judged by their loss (rollouts); None: those of
        `loss` are used. Called without gradients, on units that `prepare` has not processed."""
        return None

    def after_step(self, step: int) -> bool:
        """Called after an optimizer step. True drops the rest of the mini-batches of the last `prepare`; all ranks must agree."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The values of the attributes that `state` names, in this class and its base classes."""
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
