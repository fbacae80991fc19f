"""The chunked heads against float64 formulas, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.runtime.nn.heads import linear_cross_entropy, token_logprobs


def inputs(m: int, e: int = 8, v: int = 23) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m)
    hidden, weight = (torch.randn(n, e, generator=generator, requires_grad=True) for n in (m, v))
    return hidden, weight, torch.randint(v, (m,), generator=generator), torch.rand(m, generator=generator)


def exact(hidden: Tensor, weight: Tensor, temperature: float = 1.0) -> Tensor:
    return (hidden.double() @ weight.double().t()) / temperature


def assert_same(found: Tensor, expected: Tensor, hidden: Tensor, weight: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    cotangent = torch.linspace(-1, 2, found.numel()).reshape(found.shape)
    ours = torch.autograd.grad(found, (hidden, weight), cotangent)
    theirs = torch.autograd.grad(expected, (hidden, weight), cotangent.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(m=st.integers(0, 40), chunk=st.integers(1, 50), weighted=st.booleans())
def test_cross_entropy(m: int, chunk: int, weighted: bool) -> None:
    hidden, weight, targets, weights = inputs(m)
    found = linear_cross_entropy(hidden, weight, targets, weights_M=weights if weighted else None, chunk=chunk)
    losses = F.cross_entropy(exact(hidden, weight), targets, reduction="none")
    assert found.dtype == torch.float32
    assert_same(found, (losses * (weights if weighted else 1)).sum(), hidden, weight)


@settings(max_examples=20, deadline=None)
@given(m=st.integers(0, 40), chunk=st.integers(1, 50), temperature=st.sampled_from([0.5, 1.0, 1.7]))
def test_token_logprobs(m: int, chunk: int, temperature: float) -> None:
    hidden, weight, targets, _ = inputs(m)
    found = token_logprobs(hidden, weight, targets, temperature=temperature, chunk=chunk)
    expected = exact(hidden, weight, temperature).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert found.dtype == torch.float32
    assert_same(found, expected, hidden, weight)


@pytest.mark.parametrize("head", [linear_cross_entropy, token_logprobs])
def test_nothing_to_learn(head: Callable[..., Tensor]) -> None:
    hidden, weight, targets, _ = inputs(0)
    total = head(hidden, weight, targets).sum()
    total.backward()
    assert total.item() == 0
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("head", [linear_cross_entropy, token_logprobs])
def test_autocast_multiplies_in_bf16_and_keeps_float32_gradients(head: Callable[..., Tensor]) -> None:
    hidden, weight, targets, _ = inputs(30)
    expected = head(hidden.bfloat16(), weight.bfloat16(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden, weight, targets)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == hidden.grad.dtype == torch.float32


@pytest.mark.parametrize("head", [linear_cross_entropy, token_logprobs])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(head: Callable[..., Tensor], frozen: int) -> None:
    tensors = inputs(9)[:2]
    tensors[frozen].requires_grad_(False)
    head(*tensors, inputs(9)[2]).sum().backward()
    assert tensors[frozen].grad is None
    assert tensors[1 - frozen].grad is not None


def test_no_gradients_are_made_without_grad_mode() -> None:
    hidden, weight, targets, _ = inputs(9)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad
