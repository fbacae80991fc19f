"""What the suites with tensors share: documents to pack, and comparing within the tolerance of a type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from mm.runtime.nn.batch import Tokens, Unit

# largest difference as a share of the reference's largest value; float32 leaves room for TF32 products
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def documents(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[Unit]:
    """Units of one document of random ids each."""
    generator = torch.Generator().manual_seed(seed)
    return [Unit((Tokens(torch.randint(vocab_size, (n,), generator=generator)),), row_index=i) for i, n in enumerate(lengths)]


def assert_near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Raise unless `found` differs by at most `tolerance` of the largest expected value; answers that share."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert bool(found.isfinite().all()), f"{what}: not finite"
    scale = max(float(expected.double().abs().max()), 1e-12) if expected.numel() else 1.0
    error = float((found.double().cpu() - expected.double().cpu()).abs().max()) / scale if expected.numel() else 0.0
    assert error <= tolerance, f"{what}: differs by {error:.2g} of the largest value, more than {tolerance:.2g}"
    return error


def gradients(parameters: Iterable[Tensor]) -> Tensor:
    """All gradients as one vector; a parameter without one counts as zeros."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def reload(model: nn.Module, other: nn.Module, folder: Path) -> None:
    """Save one model as the trainer does and load it into another."""
    save_model(model, str(folder / "model.safetensors"))
    load_model(other, folder / "model.safetensors", strict=True)
