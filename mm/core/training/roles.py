"""Roles: the models of a run by what they are for (policy, reference, critic, teacher, reward)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mm.core.contracts import Totals
from mm.core.training.batch import Packed


class Role:
    """A model in its role. Calling it runs the wrapped module's forward, so that every gradient hook sees the step.

    `model` is the architecture's module, `module` what wraps it for several ranks (the same on one rank). A frozen
    role is in `eval()` and has no gradients.
    """

    def __init__(self, name: str, model: nn.Module, *, trainable: bool, module: nn.Module | None = None) -> None:
        self.name, self.model, self.trainable = name, model, trainable
        self.module = module or model
        self._auxiliary: list[Any] = []
        model.train(trainable).requires_grad_(trainable)

    def __call__(self, batch: Packed, head: Callable[[Tensor, Tensor], Any]) -> Any:
        """`head(hidden_TE, weight_VE)` inside the model's forward; what an auxiliary loss needs is kept aside."""
        result, auxiliary = self.module(batch, head=head)
        if auxiliary is not None:
            self._auxiliary.append(auxiliary)
        return result

    def counts(self, batch: Packed) -> dict[str, float]:
        """What the model's auxiliary loss divides by."""
        return self.model.counts(batch)  # type: ignore[operator,no-any-return]

    def auxiliary_loss(self, totals: Totals) -> Tensor | None:
        """The auxiliary loss of the calls since the last one, or None; added to the loss by the trainer alone."""
        pieces, self._auxiliary = self._auxiliary, []
        losses = [self.model.auxiliary_loss(piece, totals) for piece in pieces]  # type: ignore[operator]
        return sum(losses[1:], losses[0]) if losses else None


@contextmanager
def unwrapped(roles: Iterable[Role]) -> Iterator[None]:
    """Inside the block roles run their models without what wraps them for several ranks: these may then run unequally
    many forwards, and no gradient is reduced."""
    wrapped = [(role, role.module) for role in roles]
    for role, _ in wrapped:
        role.module = role.model
    try:
        yield
    finally:
        for role, module in wrapped:
            role.module = module
