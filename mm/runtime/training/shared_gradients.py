"""Sums gradients over the ranks of one machine's cores, in memory that they share.

gloo sends them through the loopback device, in pieces, by one thread per rank. Here each rank writes its gradients once, and
sums its part of all parameters for every rank: each gradient is read and written twice, at the speed of the memory. See
docs/performance.md for both.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mm.runtime.training.distributed import World

_FOLDER = Path("/dev/shm")


class SharedGradients:
    """The gradients of `parameters`, which are the same on every rank of `world`. Every rank must call `sum` at the same step.

    The sum is taken in the order of the ranks, so that it is equal to the bit on all of them.
    """

    def __init__(self, parameters: Iterable[Tensor], world: World) -> None:
        self._world = world
        self._parts = [_Part(group, world) for group in _by_dtype(parameters)]

    def sum(self) -> None:
        """Replace the gradient of each parameter by the sum over the ranks. One that no rank has stays None."""
        for part in self._parts:
            part.publish()
        self._world.barrier("sum of gradients")
        for part in self._parts:
            part.add()
        self._world.barrier("sum of gradients")
        for part in self._parts:
            part.take()


class _Part:
    """The gradients of parameters of one type: a flat copy of each rank, and which of them a rank has."""

    def __init__(self, parameters: Sequence[Tensor], world: World) -> None:
        self._parameters, self._world = parameters, world
        count, sizes = len(parameters), [p.numel() for p in parameters]
        total = sum(sizes)
        self._present = _shared(world.size * count, torch.uint8, world).view(world.size, count)
        self._flat = _shared(world.size * total, parameters[0].dtype, world).view(world.size, total)
        self._own = [flat.view_as(p) for flat, p in zip(self._flat[world.rank].split(sizes), parameters, strict=True)]
        self._some: list[bool] = []
        width = -(-total // world.size)
        self._mine = slice(world.rank * width, min(total, (world.rank + 1) * width))

    def publish(self) -> None:
        """Write this rank's gradients."""
        for index, (parameter, own) in enumerate(zip(self._parameters, self._own, strict=True)):
            self._present[self._world.rank, index] = parameter.grad is not None
            own.zero_() if parameter.grad is None else own.copy_(parameter.grad)

    def add(self) -> None:
        """Sum this rank's part of the parameters, for every rank."""
        self._some = self._present.any(0).tolist()  # before another rank begins its next step
        copies = [flat[self._mine] for flat in self._flat]
        for copy in copies[1:]:
            copies[0].add_(copy)
        for copy in copies[1:]:
            copy.copy_(copies[0])

    def take(self) -> None:
        """Make the sums this rank's gradients."""
        for parameter, own, some in zip(self._parameters, self._own, self._some, strict=True):
            parameter.grad = own if some else None


def _by_dtype(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.dtype, []).append(parameter)
    return [*groups.values()]


def _shared(count: int, dtype: torch.dtype, world: World) -> Tensor:
    """(count,) zeros that all ranks see. The file behind them is removed as soon as every rank has opened it."""
    path = ""
    if world.main:
        # shared memory of a container may be small; a file of the temporary folder is slower, as the system writes it back
        size = count * dtype.itemsize
        folder = _FOLDER if _FOLDER.is_dir() and _free(_FOLDER) > 2 * size else None
        number, path = tempfile.mkstemp(prefix="mm-gradients-", dir=folder)
        os.ftruncate(number, size)
        os.close(number)
    try:
        tensor = torch.from_file(world.gather(path, "shared memory")[0], shared=True, size=count, dtype=dtype)
        world.barrier("shared memory")
    finally:
        if world.main:
            os.unlink(path)
    return tensor


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
