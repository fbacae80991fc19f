"""Data-parallel ranks: joining the launcher's process group, exchanging small host values, wrapping a model."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from mm.core.errors import MMError
from mm.runtime.devices.backend import Backend
from mm.runtime.training.beacon import BEACON, HOST_INTERFACE, LOST_PEER
from mm.runtime.training.sharding import reduce_gradients

# how a collective library, which names itself too, says that another process has gone or does not answer
_LOST = r"Connection (closed|reset|refused)|timed out|peer"
# the interface that such a library uses, by its name
_INTERFACE = "{}_SOCKET_IFNAME"
# how often rank 0 looks whether the others have come
_POLL_SECONDS = 0.02


class RankLost(MMError):
    """A collective failed because another rank has ended or does not answer. The messages of that one give the cause."""

    exit_code = LOST_PEER


@attrs.frozen
class World:
    """This process and the ranks it trains with. Values are exchanged over a CPU group, which never touches the device. Every
    method that exchanges raises RankLost if another rank has ended. `library` is that of the device's collectives."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    library: str = "gloo"
    cpu_group: Any = None

    @property
    def main(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0

    @property
    def one_machine(self) -> bool:
        """True if all ranks are on this machine."""
        return self.local_size == self.size

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value summed over the ranks, in float64. Every rank must pass the same keys."""
        if self.size == 1:
            return dict(values)
        names = sorted(values)
        tensor = torch.tensor([values[n] for n in names], dtype=torch.float64)
        with _collective(f"sum of {', '.join(names[:3])}"):
            dist.all_reduce(tensor, group=self.cpu_group)
        return dict(zip(names, tensor.tolist(), strict=True))

    def max(self, value: int) -> int:
        """The maximum of the value over the ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value])
        with _collective("maximum"):
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return int(tensor.item())

    def gather(self, value: Any, what: str = "values") -> list[Any]:
        """The values of all ranks, in the order of the ranks. They must be picklable. `what` names them for the launcher."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with _collective(f"gather of {what}"):
                dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def barrier(self, what: str = "barrier") -> None:
        """Wait for every rank. `what` names the place for the launcher."""
        if self.size > 1:
            with _collective(what):
                dist.barrier(group=self.cpu_group)

    def with_own_group(self) -> World:
        """The same ranks with a new CPU group, for the collectives of another thread. Every rank must call this."""
        return self if self.size == 1 else attrs.evolve(self, cpu_group=dist.new_group(backend="gloo"))

    def require_equal(self, what: str, value: Any) -> None:
        """Raise MMError on every rank unless `value` is equal on all of them. `what` names the value in the message."""
        values = self.gather(value, what)
        if any(v != values[0] for v in values):
            raise MMError(f"The ranks differ in {what}: {_difference(values)}.")


def _difference(values: list[Any]) -> str:
    """The part of the values in which a rank differs from rank 0."""
    rank = next(r for r, value in enumerate(values) if value != values[0])
    one, other = values[0], values[rank]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        key = next(k for k in {**one, **other} if one.get(k) != other.get(k))
        return f"{key} is {one.get(key, 'missing')} on rank 0 and {other.get(key, 'missing')} on rank {rank}"
    return f"{one} on rank 0 and {other} on rank {rank}"


@contextlib.contextmanager
def _collective(name: str) -> Iterator[None]:
    with BEACON.collective(name):
        try:
            yield
        except RuntimeError as error:
            raise RankLost(f"Another rank has ended or does not answer, in: {name} ({_first_line(error)}).") from None


@contextlib.contextmanager
def explain_lost_rank(world: World) -> Iterator[None]:
    """Turn the error of a collective inside a data-parallel wrapper into RankLost."""
    try:
        yield
    except RuntimeError as error:
        if world.size > 1 and re.search(rf"gloo|{world.library}|{_LOST}", str(error), re.IGNORECASE):
            raise RankLost(f"Another rank has ended or does not answer ({_first_line(error)}).") from None
        raise


def _first_line(error: BaseException) -> str:
    text = re.sub(r"^\[\S+:\d+\] ", "", str(error).strip().partition("\n")[0])  # the place in gloo's sources
    return text.partition(". This is typically")[0].rstrip(".")[:200]


def join_world(backend: Backend) -> World:
    """Join the process group that the launcher's environment variables describe; without them, a world of one rank."""
    if "RANK" not in os.environ:
        return World()
    backend.device(int(os.environ.get("LOCAL_RANK", "0")))  # before anything else uses a card, which would be the first
    if not dist.is_initialized():
        # one group with two backends: the chip's library for device tensors, gloo for host tensors
        kinds = "gloo" if backend.device_type == "cpu" else f"cpu:gloo,{backend.device_type}:{backend.collective}"
        if interface := os.environ.get(HOST_INTERFACE):
            os.environ.setdefault(_INTERFACE.format(backend.collective.upper()), interface)
        atexit.register(leave_world)
        with _collective("start of the ranks"):
            store, rank, size = next(dist.rendezvous("env://"))
            dist.init_process_group(kinds, store=_unused_part(store, rank, size), rank=rank, world_size=size)
    local = {name: int(os.environ.get(f"LOCAL_{name}", "0")) for name in ("RANK", "WORLD_SIZE")}
    world = World(dist.get_rank(), dist.get_world_size(), local["RANK"], local["WORLD_SIZE"], backend.collective)
    return world.with_own_group()


def _unused_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of the store, the same on all ranks, that no earlier start of them has used. torchrun keeps one store over its
    restarts, in which gloo would find the addresses of ranks that have ended, and two agents count their restarts apart: so rank
    0 chooses a name, and tells it to each rank under a name that this rank has chosen."""
    own, start = uuid.uuid4().hex, time.monotonic()
    if rank:
        store.set(f"mm/asks/{rank}", own)
        name = store.get(f"mm/told/{own}").decode()
        store.set(f"mm/heard/{name}/{rank}", "")
        return dist.PrefixStore(f"mm/{name}", store)
    waiting = set(range(1, size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"mm/asks/{other}"]):  # perhaps in an earlier start: told in vain, and read again
                store.set(f"mm/told/{store.get(f'mm/asks/{other}').decode()}", own)
        waiting = {other for other in waiting if not store.check([f"mm/heard/{own}/{other}"])}
        if time.monotonic() - start > default_pg_timeout.total_seconds():
            raise RuntimeError(f"timed out: rank {min(waiting)} has not come")
        time.sleep(_POLL_SECONDS)
    return dist.PrefixStore(f"mm/{own}", store)


def leave_world() -> None:
    """Close the process groups of this process. A process that ends without it may be aborted by a thread of gloo."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def wrap(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The module whose forward the algorithms call: DistributedDataParallel around the model where its gradients must be summed
    during the backward; else the model itself, see `SharedGradients`."""
    if world.size == 1 or shares_memory(world, device):
        return model
    return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device.index])


def shares_memory(world: World, device: torch.device) -> bool:
    """True if gradients are summed in memory that the ranks share: those of one machine's cores."""
    return world.size > 1 and device.type == "cpu" and world.one_machine


def accumulate(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """The context for forward and backward of a micro-batch: gradients are reduced over the ranks in the `last` one only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    reduce_gradients(module, last)
    return contextlib.nullcontext()
