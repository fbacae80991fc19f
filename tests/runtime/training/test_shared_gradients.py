"""Gradients of two ranks are summed in shared memory: to the bit on both, and None where no rank has one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from ranks import two_ranks

from mm.runtime.devices.backend import Backend
from mm.runtime.training.distributed import join_world
from mm.runtime.training.shared_gradients import SharedGradients

# on both ranks, on one of them, on none; of two types
SHAPES = {"both": (3, 5), "one": (7,), "none": (2,), "double": (4,), "frozen": (1,)}


def gradient(name: str, rank: int, step: int) -> torch.Tensor | None:
    """The gradient that a rank has of a parameter at a step."""
    if name in ("none", "frozen") or (name == "one" and rank != step % 2):
        return None
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + len(name))
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64 if name == "double" else torch.float32)


def rank_main(folder: str) -> None:
    """What each rank does."""
    world = join_world(Backend())
    parameters = {
        name: torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64 if name == "double" else torch.float32))
        for name, shape in SHAPES.items()
    }
    summed, found = SharedGradients(parameters.values(), world), []
    for step in range(3):
        for name, parameter in parameters.items():
            parameter.grad = gradient(name, world.rank, step)
        summed.sum()
        found.append({name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()})
    torch.save(found, Path(folder) / f"{os.environ['RANK']}.pt")


def test_the_sum_is_that_of_both_ranks(tmp_path: Path) -> None:
    with two_ranks("test_shared_gradients", "rank_main", tmp_path):
        pass
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for step in range(3):
        for name in SHAPES:
            parts = [part for rank in (0, 1) if (part := gradient(name, rank, step)) is not None]
            if not parts:
                assert one[step][name] is None and two[step][name] is None
                continue
            assert one[step][name].equal(sum(parts[1:], parts[0])) and two[step][name].equal(one[step][name])
    assert not list(Path("/dev/shm").glob("mm-gradients-*"))
