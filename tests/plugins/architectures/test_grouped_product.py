"""Products of sorted rows: one product a group, torch's grouped kernel and a plain loop agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mm.plugins.architectures.moe.grouped import grouped_product, sliced_product


def loop(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    pieces = x.tensor_split(ends[:-1].tolist())
    return torch.cat([piece @ matrix.T for piece, matrix in zip(pieces, weight, strict=True)])


@pytest.mark.parametrize("ends", [[5, 9, 12, 20], [0, 0, 20, 20], [20, 20, 20, 20], [0, 7, 7, 20]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_is_the_loop(ends: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in ((20, 16), (4, 24, 16), (20, 24)))
    ends_J = torch.tensor(ends, dtype=torch.int32)

    def kernel(x: Tensor, weight: Tensor, ends_J: Tensor) -> Tensor:
        return F.grouped_mm(x, weight.mT, offs=ends_J)

    results = []
    for way in (loop, sliced_product, grouped_product, kernel):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = way(*inputs, ends_J)
        results.append((y, *torch.autograd.grad(y, inputs, grad)))
    expected, *others = results
    for found in others:
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_no_rows_and_frozen_weights() -> None:
    weight = torch.randn(2, 3, 5, requires_grad=True)
    sliced_product(torch.zeros(0, 5), weight, torch.zeros(2, dtype=torch.int32)).sum().backward()
    assert not weight.grad.any()
    x = torch.randn(4, 5, requires_grad=True)
    sliced_product(x, weight.detach(), torch.tensor([1, 4])).sum().backward()
    torch.testing.assert_close(x.grad[0], weight[0].detach().sum(0))


def test_a_device_keeps_the_ends_to_itself_but_where_its_kernel_refuses_the_size() -> None:
    ends = torch.empty(2, dtype=torch.int32, device="meta")
    rows = lambda *shape: torch.empty(shape, dtype=torch.bfloat16, device="meta")  # noqa: E731
    assert grouped_product(rows(4, 8), rows(2, 16, 8), ends).shape == (4, 16)
    with pytest.raises(NotImplementedError, match="meta"):  # a tensor without values is asked for them
        grouped_product(rows(4, 3), rows(2, 5, 3), ends)
