"""Data-parallel ranks: joining torchrun's process group, exchanging small host values, wrapping a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mm.core.errors import MMError
from mm.runtime.devices.backend import Backend


@attrs.frozen
class World:
    """This process and the ranks it trains with. Values are exchanged over a CPU group, which never touches the device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    cpu_group: Any = None

    @property
    def main(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value summed over the ranks, in float64. Every rank must pass the same keys."""
        if self.size == 1:
            return dict(values)
        names = sorted(values)
        tensor = torch.tensor([values[n] for n in names], dtype=torch.float64)
        dist.all_reduce(tensor, group=self.cpu_group)
        return dict(zip(names, tensor.tolist(), strict=True))

    def max(self, value: int) -> int:
        """The maximum of the value over the ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return int(tensor.item())

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of the ranks. They must be picklable."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.cpu_group)

    def with_own_group(self) -> World:
        """The same ranks with a new CPU group, for the collectives of another thread. Every rank must call this."""
        return self if self.size == 1 else attrs.evolve(self, cpu_group=dist.new_group(backend="gloo"))

    def require_equal(self, what: str, value: Any) -> None:
        """Raise MMError on every rank unless `value` is equal on all of them. `what` names the value in the message."""
        values = self.gather(value)
        if any(v != values[0] for v in values):
            raise MMError(f"The ranks differ in {what}: {values}.")


def join_world(backend: Backend) -> World:
    """Join the process group that torchrun's environment variables describe; without them, a world of one rank."""
    if "RANK" not in os.environ:
        return World()
    if not dist.is_initialized():
        # one group with two backends: the chip's library for device tensors, gloo for host tensors
        kinds = {"cpu": "gloo"} | ({backend.device_type: backend.collective} if backend.device_type != "cpu" else {})
        dist.init_process_group(",".join(f"{device}:{name}" for device, name in kinds.items()))
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0"))).with_own_group()


def wrap(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The module whose forward the algorithms call: the model on one rank, wrapped in DistributedDataParallel on several."""
    if world.size == 1:
        return model
    return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device.index])


def accumulate(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """The context for forward and backward of a micro-batch: gradients are reduced over the ranks in the `last` one only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()
