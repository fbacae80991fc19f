"""The check that all ranks have the same weights. A kernel, a card or a plugin that differs on one makes them drift apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mm.core.errors import MMError
from mm.runtime.training.sharding import is_sharded

if TYPE_CHECKING:
    from mm.runtime.training.distributed import World
    from mm.runtime.training.roles import Role

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def check_replicas(roles: Iterable[Role], world: World, step: int) -> None:
    """Compare a checksum of the trained weights over the ranks. Every rank must call this. Raises MMError naming the first
    parameters that differ. Sharded models have no replicas."""
    copied = [role for role in roles if role.trainable and not is_sharded(role.model)]
    if world.size == 1 or not copied:
        return
    pairs = ((role.name, *pair) for role in copied for pair in role.model.named_parameters())
    named = {f"{role}: {name}": parameter for role, name, parameter in pairs if parameter.requires_grad}
    sums = torch.stack([checksum(p) for p in named.values()]).tolist()
    by_rank = world.gather(sums, "checksums of the weights")
    if all(other == by_rank[0] for other in by_rank):
        return
    differing = [name for index, name in enumerate(named) if len({other[index] for other in by_rank}) > 1]
    ranks = [rank for rank, other in enumerate(by_rank) if other != by_rank[0]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise MMError(
        f"After step {step} the weights of rank {', '.join(map(str, ranks))} are not those of rank 0: "
        f"{', '.join(differing[:3])}{more}. A part of the run computes another result on each rank. The last checkpoint was "
        "saved while they were equal."
    )


def checksum(tensor: Tensor) -> Tensor:
    """The sum of the tensor's bits, read as whole numbers of its size, modulo 2**64: () int64, on its device."""
    values = tensor.detach().contiguous()
    return values.view(_BITS[values.element_size()]).sum(dtype=torch.int64)
