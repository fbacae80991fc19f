"""Named tensors of a model: taken out, cast without loss of range, compared bit for bit.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mm.core.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's state by name, detached; of tensors that are tied only the first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor.detach()))
    return dict(found.values())


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Contiguous copies on the CPU in that type. Raises UsageError naming a tensor with values beyond its range."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.to("cpu", dtype).contiguous()
        if not bool(found[name].isfinite().all()):
            raise UsageError(f"Tensor {name} has values that are not finite in {dtype}: choose another --dtype.")
    return found


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensor that is missing, extra or not bit for bit the expected one."""
    import torch

    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found or not torch.equal(expected[name], found[name]):
            raise CheckpointError(f"Tensor {name} did not come back as it was written; nothing was kept.")
