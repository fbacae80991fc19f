"""Helpers of the suites with tensors: documents to pack, and comparisons within the tolerance of a type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from mm.runtime.nn.batch import Tokens, Unit

# largest allowed difference, relative to the largest absolute value of the reference; float32 allows for TF32 products
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def documents(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[Unit]:
    """One unit for each length: a single document of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [Unit((Tokens(torch.randint(vocab_size, (n,), generator=generator)),), row_index=i) for i, n in enumerate(lengths)]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> float:
    """Raise AssertionError if the largest difference, relative to the largest absolute expected value, exceeds `tolerance`.

    Shapes must be equal and all values finite. Returns the relative difference; `name` is for the message.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert bool(actual.isfinite().all()), f"{name}: not finite"
    scale = max(float(expected.double().abs().max()), 1e-12) if expected.numel() else 1.0
    error = float((actual.double().cpu() - expected.double().cpu()).abs().max()) / scale if expected.numel() else 0.0
    assert error <= tolerance, f"{name}: differs by {error:.2g} of the largest value, more than {tolerance:.2g}"
    return error


def gradients(parameters: Iterable[Tensor]) -> Tensor:
    """All gradients as one vector; a parameter without one counts as zeros."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def reload(model: nn.Module, other: nn.Module, folder: Path) -> None:
    """Save `model` as the trainer does, and load the file into `other`."""
    save_model(model, str(folder / "model.safetensors"))
    load_model(other, folder / "model.safetensors", strict=True)
