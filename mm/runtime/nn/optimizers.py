"""Parameter groups, optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from mm.core.settings import TrainSettings
from mm.runtime.nn.model import Model
from mm.runtime.nn.muon import BatchedMuon


def hidden_matrices(model: Model) -> list[nn.Parameter]:
    """The hidden weight matrices, and the stacks of them as of experts: neither vectors nor an embedding nor an output
    projection, which are what is as long as the vocabulary outside the model's `blocks`."""
    inside = {id(p) for block in model.blocks for p in block.parameters()}
    found = (p for p in model.parameters() if p.ndim == 3 or (p.ndim == 2 and len(p) > 1))
    return [p for p in found if id(p) in inside or len(p) != model.config.vocab_size]


def build_optimizers(
    model: Model, settings: TrainSettings, notes: list[str], products: torch.dtype = torch.bfloat16
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for hidden matrices and AdamW for the rest.

    Weight decay acts on hidden matrices only. Updates of Muon (Jordan et al. 2024) are scaled to the RMS of AdamW's (Liu
    et al. 2025, arXiv:2502.16982), so that both share one learning rate. `products` is the type of its products, see
    `BatchedMuon`. Remarks for the user are appended to `notes`.
    """
    matrices = [p for p in hidden_matrices(model) if p.requires_grad]
    hidden = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in hidden]
    if settings.optimizer == "muon":
        muon = BatchedMuon(
            matrices, products=products, lr=settings.learning_rate, weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        return [muon, _adamw([{"params": others, "weight_decay": 0.0}], settings, notes)]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [_adamw([g for g in groups if g["params"]], settings, notes)]


def learning_rate(step: int, horizon: int, settings: TrainSettings) -> float:
    """The learning rate of step `step` (counted from 0) of `horizon` steps: linear warm-up, then the schedule's shape."""
    warmup = round(settings.warmup_ratio * horizon)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    start = warmup
    if settings.schedule == "wsd":
        start = max(warmup, horizon - round(settings.decay_ratio * horizon))
    progress = min(1.0, max(0, step - start) / max(1, horizon - start))
    floor = settings.min_learning_rate_ratio
    return settings.learning_rate * (floor + (1 - floor) * _SHAPES[settings.schedule](progress))


# The height between the floor (0) and the peak (1), as a function of the completed fraction of the schedule after the
# warm-up. WSD (Hu et al. 2024, arXiv:2404.06395, section 4.2) allows any decreasing decay: here it is linear, and the
# fraction is that of the decay.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
    "wsd": lambda progress: 1 - progress,
}


def _adamw(groups: list[dict[str, object]], settings: TrainSettings, notes: list[str]) -> torch.optim.AdamW:
    betas = (settings.adam_beta1, settings.adam_beta2)
    try:
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)
    except RuntimeError as error:
        # no fused kernel on this chip: slower, and each step synchronises with the host
        notes.append(f"AdamW is not fused: {error}")
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas)
