"""The batched Muon against torch's."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from mm.core.training import muon
from mm.core.training.muon import BatchedMuon, orthogonalise

SHAPES = [(24, 16), (16, 24), (24, 16), (16, 16), (16, 24)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def train(kind: type[torch.optim.Optimizer], settings: dict[str, object]) -> tuple[list[nn.Parameter], dict[int, object]]:
    trained = parameters(0)
    optimizer = kind(trained, **settings)
    for step in range(3):
        for index, (parameter, gradient) in enumerate(zip(trained, parameters(step + 1), strict=True)):
            parameter.grad = None if index == 1 and step == 0 else gradient.detach()
        optimizer.step()
    return trained, optimizer.state_dict()["state"]


@pytest.mark.parametrize("nesterov", [True, False])
def test_updates_and_state_are_torchs(nesterov: bool) -> None:
    settings = SETTINGS | {"nesterov": nesterov}
    (ours, our_state), (theirs, their_state) = train(BatchedMuon, settings), train(torch.optim.Muon, settings)
    for a, b, start in zip(ours, theirs, parameters(0), strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()  # bfloat16 inside
    torch.testing.assert_close(our_state, their_state)


def test_large_matrices_take_torchs_step() -> None:
    with mock.patch.object(muon, "_LARGEST", 8):
        assert all(map(torch.equal, train(BatchedMuon, SETTINGS)[0], train(torch.optim.Muon, SETTINGS)[0]))


@pytest.mark.parametrize("shape", [(3, 24, 16), (2, 16, 24)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    group = BatchedMuon(parameters(0), **SETTINGS).param_groups[0]
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)), group))
    assert values.min() > 0.5 and values.max() < 1.5
