"""The batched Muon against torch's."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from mm.runtime.nn import muon
from mm.runtime.nn.muon import BatchedMuon, orthogonalise

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


def test_products_in_float32_are_the_formula_in_float64() -> None:
    """The update of Jordan et al. 2024 with the rate of arXiv:2502.16982, one step from zero momentum; large matrices too."""
    start, gradients = parameters(0), parameters(1)
    for largest in (8, 2**17):
        with mock.patch.object(muon, "_MAX_BATCHED", largest):
            trained = parameters(0)
            optimizer = BatchedMuon(trained, products=torch.float32, **SETTINGS)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient.detach()
            optimizer.step()
        for parameter, before, gradient in zip(trained, start, gradients, strict=True):
            update = gradient.detach().double() * (1 - 0.95) * (1 + 0.95)  # Nesterov
            x = update / update.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
            rate = 0.02 * 0.2 * max(x.shape) ** 0.5
            wanted = before.detach().double() * (1 - 0.02 * 0.1) - rate * x
            torch.testing.assert_close(parameter.detach().double(), wanted, atol=1e-6, rtol=0)


def test_large_matrices_take_torchs_step() -> None:
    with mock.patch.object(muon, "_MAX_BATCHED", 8):
        assert all(map(torch.equal, train(BatchedMuon, SETTINGS)[0], train(torch.optim.Muon, SETTINGS)[0]))


@pytest.mark.parametrize("largest", [8, 2**17])
def test_a_stack_is_its_matrices(largest: int) -> None:
    """Experts are trained as if each were a parameter of its own."""
    generator = torch.Generator().manual_seed(0)
    values, gradients = torch.randn(2, 3, 4, 24, 16, generator=generator).unbind()
    stacks = [nn.Parameter(value.clone()) for value in values]
    matrices = [nn.Parameter(matrix.clone()) for value in values for matrix in value]
    other = nn.Parameter(torch.ones(24, 16))
    with mock.patch.object(muon, "_MAX_BATCHED", largest):
        for parameters in ([other, *stacks], matrices):
            optimizer = BatchedMuon(parameters, **SETTINGS)
            pieces = iter(gradients if parameters is not matrices else gradients.flatten(0, 1))
            for parameter in parameters:
                parameter.grad = None if parameter is other else next(pieces).clone()
            optimizer.step()
    found, expected = (torch.stack([p.detach() for p in some]).flatten() for some in (stacks, matrices))
    start = values.flatten()
    assert (found - expected).norm() < 0.02 * (expected - start).norm()


def test_a_sharded_stack_keeps_to_this_ranks_part() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh, value, matrix = init_device_mesh("cpu", (1,)), torch.randn(4, 24, 16), torch.randn(24, 16)
        results = []
        for place in (lambda t: distribute_tensor(t, mesh, [Shard(0)]), lambda t: t):
            parameters = [nn.Parameter(place(tensor.clone())) for tensor in (value, matrix)]
            for parameter, tensor in zip(parameters, (value, matrix), strict=True):
                parameter.grad = place(tensor.sin())
            BatchedMuon(parameters, **SETTINGS).step()
            results.append(parameters[0].detach())
        assert torch.equal(results[0].full_tensor(), results[1])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shape", [(3, 24, 16), (2, 16, 24)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    group = BatchedMuon(parameters(0), **SETTINGS).param_groups[0]
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)), group))
    assert values.min() > 0.5 and values.max() < 1.5
