"""The CPU's packed attention against the portable one and against the formula in float64; the CPU backend."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.backends.cpu import attention, mm_backends
from mm.backends.cpu.attention import block_attention
from mm.backends.cpu.attention_plan import plan_of
from mm.backends.cpu.backend import CpuBackend
from mm.backends.cuda.backend import varlen_attention
from mm.plugins.architectures.dense import DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.runtime.nn.attention import packed_attention
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.kernels import Kernels


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
    # 64 is a block, 16 its smallest; below half the longest a new bucket begins
    lengths=st.lists(st.sampled_from([1, 2, 9, 9, 16, 40, 64, 65, 150]), min_size=1, max_size=6),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    attention=st.sampled_from([block_attention, packed_attention]),
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


def test_bf16_gradients_are_as_exact_as_the_portable_ones() -> None:
    lengths = [70, 33, 7, 7]
    batch = batch_of(lengths)
    *qkv, cotangent = (x.detach().bfloat16().requires_grad_() for x in inputs(lengths, 4, 2))
    exact = formula(*qkv, batch)
    expected = exact, *torch.autograd.grad(exact, qkv, cotangent.double())
    errors = []
    for kernel in (block_attention, packed_attention):
        found = kernel(*qkv, batch)
        results = found, *torch.autograd.grad(found, qkv, cotangent)
        errors.append([(a.double() - b).norm().item() for a, b in zip(results, expected, strict=True)])
    assert all(ours <= 1.3 * theirs for ours, theirs in zip(*errors, strict=True))


def test_a_document_does_not_see_its_neighbours_in_the_padding() -> None:
    lengths = [40, 33, 17]
    q, k, v, _ = inputs(lengths, 4, 2)
    together = block_attention(q, k, v, batch_of(lengths))
    poisoned = [torch.cat((x[:40], torch.full_like(x[40:73], torch.nan), x[73:])) for x in (q, k, v)]
    beside = block_attention(*poisoned, batch_of(lengths))
    assert torch.equal(together[:40], beside[:40]) and torch.equal(together[73:], beside[73:])


def test_empty_pack_and_empty_document() -> None:
    *qkv, _ = inputs([], 4, 2)
    nothing = block_attention(*qkv, batch_of([]))
    assert nothing.shape == (0, 4, 8)
    assert all(g.shape == x.shape for g, x in zip(torch.autograd.grad(nothing.sum(), qkv), qkv, strict=True))
    assert torch.equal(plan_of((3, 0, 2), 4, 2).query_positions, plan_of((3, 2), 4, 2).query_positions)


@given(lengths=st.lists(st.integers(1, 300), max_size=12))
@settings(max_examples=30, deadline=None)
def test_plan_covers_every_row_once_and_wastes_little(lengths: list[int]) -> None:
    batch, heads, kv_heads = batch_of(lengths), 4, 2
    plan = plan_of(batch.lengths, heads, kv_heads)
    for rows, positions, count in ((plan.query_rows, plan.query_positions, 4), (plan.key_rows, plan.key_positions, 2)):
        assert torch.equal(rows[positions], torch.arange(batch.num_tokens * count))
    assert len(plan.query_rows) == len(plan.query_positions) + len(plan.query_padding)
    # a document is padded by less than a block; its keys at most to twice their number and a block
    assert len(plan.query_rows) <= heads * sum(n + 63 for n in lengths)
    assert len(plan.key_rows) <= kv_heads * sum(2 * n + 63 for n in lengths)


@pytest.mark.parametrize("kept", [0, 64])
def test_probabilities_may_be_kept_or_computed_again(kept: int) -> None:
    lengths = [150, 40]
    *qkv, cotangent = inputs(lengths, 4, 2)
    expected = torch.autograd.grad(block_attention(*qkv, batch_of(lengths)), qkv, cotangent)
    with mock.patch.object(attention, "_KEPT_KEYS", kept):
        found = torch.autograd.grad(block_attention(*qkv, batch_of(lengths)), qkv, cotangent)
    assert all(map(torch.equal, found, expected))


def test_nothing_is_kept_without_a_backward() -> None:
    *qkv, _ = inputs([40, 9], 4, 2)
    with torch.no_grad():
        assert not block_attention(*qkv, batch_of([40, 9])).requires_grad
    frozen = [x.detach() for x in qkv]
    assert torch.equal(block_attention(*frozen, batch_of([40, 9])), block_attention(*qkv, batch_of([40, 9])))


def test_backend_facts() -> None:
    (spec,) = mm_backends()
    assert spec.probe().available and spec.load() is CpuBackend
    backend = CpuBackend()
    assert backend.kernels().attention is block_attention
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


@pytest.mark.parametrize("attention", [block_attention, packed_attention, varlen_attention])
def test_compiled_blocks_take_packs_of_any_lengths_without_compiling_again(attention: Callable[..., torch.Tensor]) -> None:
    config = DenseConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=11)
    model = Dense(config, Kernels(attention=attention))
    packs = [batch_of(lengths) for lengths in ([9, 4], [30, 2, 2], [5], [70, 40, 3])]
    expected = [model(batch)[0] for batch in packs]
    for block in model.blocks:
        block.compile(backend="eager", dynamic=True)
    model(packs[0])[0].sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [model(batch)[0] for batch in packs]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
