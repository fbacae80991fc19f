"""The portable scan against a loop over the tokens in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.scan import packed_scan
from mm.testing.suites.tensors import gradients


def batch_of(lengths: list[int]) -> Packed:
    return pack([Unit((Tokens(torch.zeros(n, dtype=torch.long)),)) for n in lengths])


def looped(decay_TE: Tensor, input_TE: Tensor, lengths: list[int]) -> Tensor:
    """The recurrence, token by token."""
    rows, start = [], 0
    for length in lengths:
        h_E = input_TE.new_zeros(input_TE.shape[1])
        for t in range(start, start + length):
            h_E = decay_TE[t] * h_E + input_TE[t] if t > start else input_TE[t]
            rows.append(h_E)
        start += length
    return torch.stack(rows)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_values_and_gradients_are_the_loop_s(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    decay, x, weight = (torch.rand(sum(lengths), 3, generator=generator) for _ in range(3))
    pairs = []
    for kind, dtype in (("scan", torch.float32), ("scan", torch.float64), ("loop", torch.float64)):
        leaves = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in (decay, x)]
        h = packed_scan(*leaves, batch_of(lengths)) if kind == "scan" else looped(*leaves, lengths)
        (h * weight).sum().backward()
        pairs.append((h.detach().double(), gradients(leaves).double()))
    for found, exact, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(exact, expected, atol=1e-12, rtol=1e-12)


def test_a_document_does_not_depend_on_its_pack() -> None:
    decay, x = torch.rand(30, 4), torch.rand(30, 4)
    alone = [packed_scan(a, b, batch_of([len(a)])) for a, b in zip(decay.split([13, 1, 16]), x.split([13, 1, 16]), strict=True)]
    assert packed_scan(decay, x, batch_of([13, 1, 16])).equal(torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_s_type_and_an_empty_pack(dtype: torch.dtype) -> None:
    decay, x = (torch.rand(9, 2, dtype=dtype, requires_grad=True) for _ in range(2))
    assert packed_scan(decay, x, batch_of([5, 4])).dtype == dtype
    nothing = packed_scan(decay[:0], x[:0], batch_of([]))
    assert nothing.shape == (0, 2) and nothing.dtype == dtype
    nothing.sum().backward()
    assert not decay.grad.any() and not x.grad.any()
