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

# names in a message
_SHOWN = 3


def named_tensors(model: nn.Module, *, by_name: bool = False) -> dict[str, Tensor]:
    """A model's state dict, detached. A tied tensor appears once, under its first name: first in the state dict or, with
    `by_name`, in alphabetical order, as in our own files."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name in sorted(state) if by_name else state:
        names.setdefault(id(state[name]), name)
    return {name: state[name].detach() for name in names.values()}


def layout(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape of every parameter and buffer by name, and the first name of the same tensor."""
    first: dict[int, str] = {}
    found = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            found[name] = tuple(tensor.shape), first.setdefault(id(tensor), name)
    return found


def moved_tensors(before: Mapping[str, tuple[object, str]], after: Mapping[str, tuple[object, str]]) -> str:
    """How the second `layout` of a model differs from the first, with the first names of each kind; empty if it does not."""
    kept = sorted(before.keys() & after.keys())
    kinds = {
        "missing": sorted(before.keys() - after.keys()),
        "new": sorted(after.keys() - before.keys()),
        "of another shape": [name for name in kept if before[name][0] != after[name][0]],
        "tied otherwise": [name for name in kept if before[name][1] != after[name][1] and before[name][1] in after],
    }
    shown = {kind: ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
             for kind, names in kinds.items()}  # fmt: skip
    return "; ".join(f"{kind}: {names}" for kind, names in shown.items() if names)


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
