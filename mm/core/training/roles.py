"""Roles: the models of a run by what they are for (policy, reference, critic, teacher)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mm.core.contracts import Totals
from mm.core.training.batch import Packed


class Role:
    """A model in its role. Calling it runs the wrapped module's forward, so that every gradient hook sees the step.

    `model` is the architecture's module, `module` what wraps it for several ranks (the same on one rank). A frozen
    role is in `eval()` and has no gradients. `settings` are what its training has of its own (`learning_rate`,
    `clip_norm`). With `without`, a frozen role shares the model of another and is called inside that context (the
    policy with its adapter off): the other one then decides about training mode.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        trainable: bool,
        module: nn.Module | None = None,
        settings: Mapping[str, Any] | None = None,
        without: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.name, self.model, self.trainable = name, model, trainable
        self.module = module or model
        self.settings = {k: v for k, v in (settings or {}).items() if v is not None}
        self._without = without
        self._auxiliary: list[Any] = []
        if not trainable and without is None:
            model.requires_grad_(False)
        self.train(True)

    @property
    def shared(self) -> bool:
        """Whether the model is another role's."""
        return self._without is not None

    def train(self, mode: bool) -> None:
        """Training mode for a trained role, `eval()` otherwise."""
        if not self.shared:
            self.model.train(mode and self.trainable)

    def __call__(self, batch: Packed, head: Callable[[Tensor, Tensor], Any]) -> Any:
        """`head(hidden_TE, weight_VE)` inside the model's forward; what an auxiliary loss needs is kept aside."""
        with self._without() if self._without else nullcontext():
            result, auxiliary = self.module(batch, head=head)
        if auxiliary is not None and self.trainable and torch.is_grad_enabled():
            self._auxiliary.append(auxiliary)
        return result

    def counts(self, batch: Packed) -> dict[str, float]:
        """What the model's auxiliary loss divides by, under the role's name: two roles may be of one architecture."""
        counted: dict[str, float] = self.model.counts(batch) if self.trainable else {}  # type: ignore[operator]
        return {f"{self.name}.{name}": value for name, value in counted.items()}

    def auxiliary_loss(self, totals: Totals) -> Tensor | None:
        """The auxiliary loss of the calls since the last one, or None; added to the loss by the trainer alone."""
        pieces, self._auxiliary = self._auxiliary, []
        prefix = f"{self.name}."
        own = {name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)}
        losses = [self.model.auxiliary_loss(piece, own) for piece in pieces]  # type: ignore[operator]
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
