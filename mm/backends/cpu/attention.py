"""Packed causal attention on the CPU: torch's flash kernel over runs of documents of equal length.

A custom operator, so that `torch.compile` keeps it whole instead of breaking the graph at its loop. The kernel takes
fewer key heads than query heads as they are, so nothing is padded and no head is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing import Any

    from mm.core.training.batch import Packed

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
# private operators: a torch that drops them gets the portable attention
AVAILABLE = hasattr(torch.ops.aten, _FORWARD) and hasattr(torch.ops.aten, f"{_FORWARD}_backward")


def flash_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
    """Causal attention within each document -> o_THD. Differentiable."""
    return varlen_attention(q_THD, k_TKD, v_TKD, batch.cu_seqlens)[0]


@torch.library.custom_op("mm::cpu_varlen_attention", mutates_args=(), device_types="cpu")
def varlen_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """(o_THD, logsumexp_TH of the scaled scores) for documents between the offsets `cu_seqlens` (N + 1)."""
    o_THD, logsumexp_TH = _like(q_THD), _logsumexp_like(q_THD)
    for run in _runs(cu_seqlens):
        o, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            run.heads(q_THD), run.heads(k_TKD), run.heads(v_TKD), 0.0, True
        )
        run.put(o_THD, o)
        run.put(logsumexp_TH, logsumexp)
    return o_THD, logsumexp_TH


@torch.library.custom_op("mm::cpu_varlen_attention_backward", mutates_args=(), device_types="cpu")
def varlen_attention_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    o_THD: Tensor,
    logsumexp_TH: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `varlen_attention`'s first output with respect to q_THD, k_TKD and v_TKD."""
    results = _like(q_THD), _like(k_TKD), _like(v_TKD)
    for run in _runs(cu_seqlens):
        inputs = (run.heads(x) for x in (grad_THD, q_THD, k_TKD, v_TKD, o_THD, logsumexp_TH))
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*inputs, 0.0, True)
        for result, gradient in zip(results, gradients, strict=True):
            run.put(result, gradient)
    return results


class _Run:
    """Adjacent documents of one length, seen by the kernel as a batch."""

    def __init__(self, start: int, count: int, length: int) -> None:
        self.shape = (count, length)
        self.tokens = slice(start, start + count * length)

    def heads(self, x_THD: Tensor) -> Tensor:
        """The run's [count, H, length, D] (or [count, H, length]) of a packed tensor, as a view."""
        return x_THD[self.tokens].unflatten(0, self.shape).transpose(1, 2)

    def put(self, x_THD: Tensor, value: Tensor) -> None:
        """Copy what `heads` has the shape of into the packed tensor."""
        self.heads(x_THD).copy_(value)


def _runs(cu_seqlens: Tensor) -> Iterator[_Run]:
    start = 0
    for length, group in groupby(stop - begin for begin, stop in pairwise(cu_seqlens.tolist())):
        count = sum(1 for _ in group)
        if length:
            yield _Run(start, count, length)
        start += count * length


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _logsumexp_like(q_THD: Tensor) -> Tensor:
    return q_THD.new_empty(q_THD.shape[:2], dtype=torch.promote_types(q_THD.dtype, torch.float32))


@varlen_attention.register_fake
def _(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    return _like(q_THD), _logsumexp_like(q_THD)


@varlen_attention_backward.register_fake
def _(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    o_THD: Tensor,
    logsumexp_TH: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q_THD), _like(k_TKD), _like(v_TKD)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q_THD, k_TKD, v_TKD, cu_seqlens = inputs
    ctx.save_for_backward(q_THD, k_TKD, v_TKD, *output, cu_seqlens)


def _backward(ctx: Any, grad_THD: Tensor, _grad_logsumexp: Tensor) -> tuple[Tensor | None, ...]:
    gradients = varlen_attention_backward(grad_THD.contiguous(), *ctx.saved_tensors)
    return (*gradients, None)


varlen_attention.register_autograd(_backward, setup_context=_save)
