"""Counts the bytes of the tensors that are alive, on any device: what a training needs besides the process itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """While it is active, `bytes` is the size of the storages of all tensors that an operator has read or made and that still
    exist, and `peak` the largest value so far. A storage counts once, however many views it has. Memory that an operator
    allocates and frees inside is not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of these tensors from now on, such as those of weights that existed before."""
        for tensor in tensors:
            self._add(tensor)

    def restart(self) -> None:
        """Forget the peak: it is that of what follows."""
        self.peak = self.bytes

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As the operator, and its tensors are counted."""
        result = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        return result

    def _add(self, tensor: Tensor) -> None:
        # a tensor in a library's own layout, as oneDNN's, has no storage that can be read
        storage: Any = tensor if tensor.layout == torch._mkldnn else tensor.untyped_storage()  # type: ignore[attr-defined]
        if id(storage) in self._alive or not (size := storage.nbytes if storage is tensor else storage.nbytes()):
            return
        key = id(storage)

        def freed(_: object) -> None:
            self.bytes -= self._alive.pop(key)[1]

        self._alive[key] = weakref.ref(storage, freed), size
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
