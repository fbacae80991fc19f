"""The CPU's RMSNorm in blocks against the portable one, and its place in a model."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.backends.cpu import norm
from mm.backends.cpu.backend import CpuBackend
from mm.backends.cpu.norm import block_rms_norm
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.architectures.layers import rms_norm
from mm.runtime.nn.kernels import Kernels


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[0])
    x, cotangent = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
    return x.requires_grad_(), (torch.rand(shape[-1], generator=generator) + 0.5).requires_grad_(), cotangent


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 40), heads=st.sampled_from([(), (3,)]), block=st.sampled_from([1, 64, 2**18]))
def test_values_and_gradients(rows: int, heads: tuple[int, ...], block: int) -> None:
    x, weight, cotangent = inputs((rows, *heads, 24))
    exact = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    expected = exact, *torch.autograd.grad(exact, (x, weight), cotangent.double())
    errors = []
    with mock.patch.object(norm, "_BLOCK", block):
        for function in (block_rms_norm, rms_norm):
            y = function(x, weight, 1e-5, "after")
            found = y, *torch.autograd.grad(y, (x, weight), cotangent)
            assert [f.dtype for f in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
            errors.append([(f.double() - e).norm().item() for f, e in zip(found, expected, strict=True)])
    assert all(ours <= 1.05 * theirs + 1e-5 for ours, theirs in zip(*errors, strict=True))


@pytest.mark.parametrize("rounding", ["before", "after"])
@pytest.mark.parametrize("kinds", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_other_types_take_the_portable_one(kinds: tuple[torch.dtype, torch.dtype], rounding: str) -> None:
    x, weight, _ = inputs((5, 8))
    arguments = x.to(kinds[0]), weight.to(kinds[1]), 1e-5, rounding
    assert torch.equal(block_rms_norm(*arguments), rms_norm(*arguments))


def test_backend_puts_it_into_every_norm_of_a_model() -> None:
    config = DenseConfig(**GEN3, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=11)
    model = Dense(config, Kernels())
    assert CpuBackend().fuse(model) == ["RMSNorm"]
    found = [m.normalise for m in model.modules() if hasattr(m, "normalise")]
    assert found == [block_rms_norm] * (2 * 4 + 1)
    assert CpuBackend().fuse(torch.nn.Linear(2, 2)) == []
