"""A model's tensors by name: read from it, cast without overflow, compared bit for bit.

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
    """A model's state dict, detached. A tied tensor appears once, under its first name: first in the state dict or, with
    `by_name`, in alphabetical order, as in our own files."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name in sorted(state) if by_name else state:
        names.setdefault(id(state[name]), name)
    return {name: state[name].detach() for name in names.values()}


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Contiguous copies on the CPU in `dtype`. Raises UsageError naming a tensor with values that are not finite in it."""
    copies = {}
    for name, tensor in tensors.items():
        copies[name] = tensor.to("cpu", dtype).contiguous()
        if not bool(copies[name].isfinite().all()):
            raise UsageError(f"Tensor {name} has values that are not finite in {dtype}: choose another --dtype.")
    return copies


def compare(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensor that is missing, unexpected or not equal to the expected one."""
    import torch

    for name in sorted(expected.keys() | actual.keys()):
        if name not in expected or name not in actual or not torch.equal(expected[name], actual[name]):
            raise CheckpointError(f"Tensor {name} did not come back as it was written; nothing was kept.")
