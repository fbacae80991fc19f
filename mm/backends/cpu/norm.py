"""RMSNorm on the CPU, for half-precision activations and float32 weights, the types under autocast.

torch has no fused CPU kernel for it: its operators read or write float32 copies of the activations about fifteen times and keep
three copies for the backward. This one works in blocks that stay in the cache, and its backward keeps the activations and
one number per row. On 2000 x 512 it is 4 times as fast, which saves 6% of a training step.

Shape suffixes: T tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm.plugins.architectures.layers import rms_norm

# 1 MiB in float32, half of a second-level cache
_BLOCK = 2**18


def block_rms_norm(x: Tensor, weight_E: Tensor, eps: float, rounding: str) -> Tensor:
    """Computes `rms_norm`, in blocks. Compiled blocks and other types use `rms_norm` itself, which inductor fuses better."""
    mixed = x.dtype.itemsize == 2 and weight_E.dtype == torch.float32
    if not mixed or torch.compiler.is_compiling():
        return rms_norm(x, weight_E, eps, rounding)
    y: Tensor = _BlockNorm.apply(x.reshape(-1, x.shape[-1]), weight_E, eps).view(x.shape)
    return y


class _BlockNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        y_TE, scale_T1 = torch.empty_like(x_TE), x_TE.new_empty(x_TE.shape[0], 1, dtype=torch.float32)
        for rows in _blocks(x_TE):
            x = x_TE[rows].float()
            mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
            torch.rsqrt(mean.add_(eps), out=scale_T1[rows])
            y_TE[rows] = x.mul_(scale_T1[rows]).mul_(weight_E)
        ctx.save_for_backward(x_TE, weight_E, scale_T1)
        return y_TE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        x_TE, weight_E, scale_T1 = ctx.saved_tensors
        dx_TE, dweight_E = torch.empty_like(x_TE), torch.zeros_like(weight_E)
        for rows in _blocks(x_TE):
            unit, grad = x_TE[rows].float().mul_(scale_T1[rows]), grad_TE[rows].float()
            product = grad * unit
            dweight_E += product.sum(0)
            along = product @ weight_E[:, None] / -x_TE.shape[1]
            # d/dx of x / rms(x): the component of the gradient orthogonal to x, divided by rms(x)
            dx_TE[rows] = grad.mul_(weight_E).addcmul_(unit, along).mul_(scale_T1[rows])
        return dx_TE, dweight_E, None


def _blocks(x_TE: Tensor) -> Iterator[slice]:
    step = max(1, _BLOCK // x_TE.shape[1])
    return (slice(start, start + step) for start in range(0, x_TE.shape[0], step))
