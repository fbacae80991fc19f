"""The CPU's packed attention against the portable one and against the formula in float64; the CPU backend."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm.backends.cpu import attention as cpu_attention
from mm.backends.cpu import mm_backends
from mm.backends.cpu.attention import flash_attention, varlen_attention
from mm.backends.cpu.backend import CpuBackend
from mm.core.training.attention import packed_attention
from mm.core.training.batch import Packed, Tokens, Unit, pack


def batch_of(lengths: list[int]) -> Packed:
    return pack([Unit((Tokens(torch.zeros(n, dtype=torch.long)),)) for n in lengths])


def inputs(lengths: list[int], heads: int, kv_heads: int, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    counts = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(sum(lengths), h, size, generator=generator, requires_grad=True) for h in counts]


def formula(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
    """softmax(q k / sqrt(D)) v in float64 over one [T, T] mask."""
    group = q_THD.shape[1] // k_TKD.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k_TKD, v_TKD))
    scores = torch.einsum("qhd,khd->hqk", q_THD.double(), k) / q_THD.shape[-1] ** 0.5
    document = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths, dtype=torch.long))
    allowed = (document[:, None] == document) & torch.ones_like(scores[0], dtype=torch.bool).tril()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 9, 9, 40]), min_size=1, max_size=6),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    attention=st.sampled_from([flash_attention, packed_attention]),
)
def test_values_and_gradients(lengths: list[int], heads: tuple[int, int], attention: Callable[..., Tensor]) -> None:
    batch = batch_of(lengths)
    *qkv, cotangent = inputs(lengths, *heads)
    found, expected = attention(*qkv, batch), formula(*qkv, batch)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(found, qkv, cotangent)
    theirs = torch.autograd.grad(expected, qkv, cotangent.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_bf16_is_as_exact_as_the_portable_one() -> None:
    lengths = [33, 7, 7]
    batch = batch_of(lengths)
    qkv = [x.detach().bfloat16() for x in inputs(lengths, 4, 2)[:3]]
    expected = formula(*qkv, batch)
    errors = [(f(*qkv, batch).double() - expected).abs().max() for f in (flash_attention, packed_attention)]
    assert errors[0] <= 1.5 * errors[1]


def test_empty_pack_and_empty_document() -> None:
    q, k, v, _ = inputs([], 4, 2)
    assert flash_attention(q, k, v, batch_of([])).shape == (0, 4, 8)
    q, k, v, _ = inputs([3, 2], 4, 2)
    with_empty = varlen_attention(q, k, v, torch.tensor([0, 3, 3, 5]))[0]
    assert torch.equal(with_empty, varlen_attention(q, k, v, torch.tensor([0, 3, 5]))[0])


def test_operator_registration() -> None:
    q, k, v, _ = inputs([5, 3, 3], 4, 2)
    torch.library.opcheck(varlen_attention, (q, k, v, torch.tensor([0, 5, 8, 11])))


def test_backend_uses_the_operator_where_torch_has_it() -> None:
    backend = CpuBackend()
    assert backend.attention() is flash_attention
    with mock.patch.object(cpu_attention, "AVAILABLE", False):
        assert backend.attention() is packed_attention
        backend.attention()
    assert len(backend.notes) == 1


def test_backend_facts() -> None:
    (spec,) = mm_backends()
    assert spec.probe().available and spec.load() is CpuBackend
    backend = CpuBackend()
    assert backend.default_dtype() in ("bf16", "fp32")
    assert backend.memory()["peak"] < backend.memory()["total"]
    assert backend.capabilities()["threads"] == torch.get_num_threads()
    assert backend.peak_flops("fp32") == backend.peak_flops("fp32") > 1e8


@pytest.mark.parametrize(("error", "precision"), [(4e-7, "medium"), (2e-3, "highest")])
def test_setup_keeps_float32_exact(error: float, precision: str) -> None:
    old = torch.get_float32_matmul_precision()
    try:
        with mock.patch("mm.backends.cpu.backend.matmul_error", return_value=error):
            backend = CpuBackend()
            backend.setup()
        assert torch.get_float32_matmul_precision() == precision
        assert bool(backend.notes) == (precision == "highest")
    finally:
        torch.set_float32_matmul_precision(old)


def test_compile_declines_without_a_compiler_and_takes_each_block_with_one() -> None:
    model = torch.nn.Module()
    model.blocks = [mock.Mock(), mock.Mock()]
    with mock.patch("mm.backends.cpu.backend.shutil.which", return_value=None):
        assert "compiler" in (CpuBackend().compile(model) or "")
    assert not model.blocks[0].compile.called
    with mock.patch("mm.backends.cpu.backend.shutil.which", return_value="/usr/bin/g++"):
        assert CpuBackend().compile(model) is None
    assert all(block.compile.called for block in model.blocks)
