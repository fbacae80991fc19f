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


def named_tensors(model: nn.Module, *, by_name: bool = False) -> dict[str, Tensor]:
    """A model's state, detached. Tied tensors appear once, under the first of their names: the first in the state or, with
    `by_name`, in the alphabet, as our own files have them."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name in sorted(state) if by_name else state:
        names.setdefault(id(state[name]), name)
    return {name: state[name].detach() for name in names.values()}


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
