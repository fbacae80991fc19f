"""A simulated device: tensors that say they are elsewhere and hold their values on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from mm.runtime.training.measures import Largest


class OtherDevice(torch.Tensor):
    """A tensor of the device "meta" that has values. As on a chip, an operation on it and on a tensor of the host is refused,
    except that a scalar of the host may be added to it or the like. Reading it or moving it to the host gives its values."""

    @staticmethod
    def __new__(cls, values: Tensor) -> OtherDevice:
        """`values` on the simulated device."""
        there = torch.device("meta")
        made: OtherDevice = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=there)
        made.values_on_host = values.detach()
        return made

    values_on_host: Tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run the operation on the host. Raises RuntimeError for operands of both devices."""
        operands = [value for value in tree_flatten((args, kwargs or {}))[0] if isinstance(value, Tensor)]
        if any(not isinstance(value, cls) and value.dim() for value in operands) or (
            func is torch.ops.aten.stack.default and not all(isinstance(value, cls) for value in operands)
        ):
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, meta and cpu")
        named = dict(kwargs or {})
        to = named.pop("device", None) if func is torch.ops.aten._to_copy.default else None
        result = func(*tree_map_only(cls, lambda value: value.values_on_host, args), **named)
        return result if to is not None and torch.device(to).type == "cpu" else tree_map_only(Tensor, cls, result)


def moved(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """A metric's pair with its tensors on the simulated device; a `Largest` stays one."""
    value, size = (OtherDevice(part) if isinstance(part, Tensor) else part for part in pair)
    return Largest(value, pair.size) if isinstance(pair, Largest) else (value, size)
