"""Explaining a non-finite loss: the step is replayed with hooks, and the first layer that made it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mm.core.training.batch import Unit
    from mm.core.training.trainer import Trainer


def explain(trainer: Trainer, step: int, units: list[Unit]) -> str:
    """The message for a non-finite loss or gradient in step `step` (from 0). Parameters are still those of the step."""
    rows = sorted({u.row for u in units})
    shown = ", ".join(map(str, rows[:8])) + (" .." if len(rows) > 8 else "")
    found: list[str] = []
    hooks = [
        module.register_forward_hook(_recorder(f"{role.name}.{name}", found))
        for role in trainer.roles.values()
        for name, module in role.model.named_modules()
        if name
    ]
    losses = []
    try:
        with torch.no_grad():
            micro = trainer.micro_batches(units)
            totals = trainer._totals(micro)
            losses = [trainer.loss(batch.to(trainer.device), totals)[0] for batch in micro]
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        where = f"the first layer with a non-finite output is {found[0]}"
    elif any(not torch.isfinite(loss).all() for loss in losses):
        where = "all layers' outputs are finite, the loss is not"
    else:
        where = "the loss is finite, its gradient is not"
    return (
        f"Step {step + 1} gave a non-finite gradient: {where} (rows {shown}). No update was applied from there on. "
        "Lower --learning-rate, or use --dtype fp32, and go on with --resume."
    )


def _recorder(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if any(isinstance(t, Tensor) and t.is_floating_point() and not torch.isfinite(t).all() for t in tensors):
            found.append(name)

    return hook
