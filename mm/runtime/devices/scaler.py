"""The contract of a gradient scaler. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Scaler(Protocol):
    """Keeps small gradients of a compute type with a small range (fp16) from becoming 0. `torch.amp.GradScaler` is one.

    Per optimizer step, the trainer calls `scale` for each micro-batch, then `unscale_` for each optimizer, clips, calls `step`
    for each optimizer and last `update`.
    """

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the present scale."""

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, in place, and record if any is not finite."""

    def step(self, optimizer: torch.optim.Optimizer) -> Any:
        """Step the optimizer, unless a gradient of its parameters was not finite."""

    def update(self) -> None:
        """Adjust the scale: lower it after an overflow. Training fails once it is below 2**-14."""

    def get_scale(self) -> float:
        """The present scale."""

    def state_dict(self) -> dict[str, Any]:
        """The state that an exact resume needs."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore what `state_dict` returned."""
