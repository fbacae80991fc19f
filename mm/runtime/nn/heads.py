"""Output heads that process positions chunk by chunk, so that the logits of only one chunk exist at a time.

Both heads compute products in the type of autocast if it is on, else in the type of `hidden_ME`, and reduce in float32.
They are ordinary differentiable functions of autograd. Legend: M learned positions, E hidden size, V vocabulary, m
positions of a chunk, r rows of a pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm.runtime.nn.chunked import (
    ChunkedLinear,
    chunks,
    compute_dtype,
    default_chunk,
    reduce_dtype,
    scale_logits,
    softmax_passes,
)


def linear_cross_entropy(
    hidden_ME: Tensor,
    weight_VE: Tensor,
    targets_M: Tensor,
    *,
    weights_M: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The SUM over M of weights_M * -log softmax(hidden @ weight.T)[target], a float32 scalar.

    The gradients are computed in the forward, chunk by chunk, so that the logits are computed only once. `weights_M` gets
    no gradient. M = 0 gives 0 with zero gradients.
    """
    dtype = compute_dtype(hidden_ME)
    chunk = chunk or default_chunk(weight_VE)
    # read here, since inside forward() gradients are always off
    total: Tensor = _LinearCrossEntropy.apply(
        hidden_ME, weight_VE, targets_M, weights_M, chunk, dtype, torch.is_grad_enabled()
    )
    return total


def token_logprobs(
    hidden_ME: Tensor, weight_VE: Tensor, targets_M: Tensor, *, temperature: float = 1.0, chunk: int | None = None
) -> Tensor:
    """log softmax(hidden @ weight.T / temperature)[target] for each of the M positions: (M,) float32.

    The backward computes the logits of each chunk again, since the gradient of the output is not known in the forward.
    """
    dtype = compute_dtype(hidden_ME)
    chunk = chunk or default_chunk(weight_VE)
    logprobs_M: Tensor = _TokenLogprobs.apply(hidden_ME, weight_VE, targets_M, temperature, chunk, dtype)
    return logprobs_M


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ME: Tensor,
        weight_VE: Tensor,
        targets_M: Tensor,
        weights_M: Tensor | None,
        chunk: int,
        dtype: torch.dtype,
        with_grad: bool,
    ) -> Tensor:
        linear = ChunkedLinear(hidden_ME, weight_VE, dtype, [with_grad and need for need in ctx.needs_input_grad[:2]])
        total = torch.zeros((), dtype=reduce_dtype(dtype), device=hidden_ME.device)
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in chunks(targets_M.shape[0], chunk):
                logits_mV = linear.logits(part)
                for rows, positions in softmax_passes(part, logits_mV):
                    index_r1 = targets_M[positions, None]
                    scale_r1 = None if weights_M is None else weights_M[positions, None]
                    if linear.needs_gradients:
                        logprobs_r1 = _to_gradient(logits_mV[rows], index_r1, scale_r1)
                    else:
                        logprobs_r1 = _target_logprobs(logits_mV[rows], index_r1)
                    total -= (logprobs_r1 if scale_r1 is None else logprobs_r1 * scale_r1).sum()
                linear.add(part, logits_mV)
                del logits_mV  # before the next chunk's are made
        ctx.save_for_backward(*linear.gradients(hidden_ME.dtype, weight_VE.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return (*scaled, None, None, None, None, None)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ME: Tensor,
        weight_VE: Tensor,
        targets_M: Tensor,
        temperature: float,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        linear = ChunkedLinear(hidden_ME, weight_VE, dtype, [False, False])
        logprobs_M = hidden_ME.new_empty(targets_M.shape, dtype=reduce_dtype(dtype))
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in chunks(targets_M.shape[0], chunk):
                logits_mV = linear.logits(part)
                for rows, positions in softmax_passes(part, logits_mV):
                    index_r1 = targets_M[positions, None]
                    logprobs_M[positions] = _target_logprobs(logits_mV[rows], index_r1, temperature).squeeze(1)
                del logits_mV
        ctx.save_for_backward(hidden_ME, weight_VE, targets_M)
        ctx.settings = temperature, chunk, dtype
        return logprobs_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ME, weight_VE, targets_M = ctx.saved_tensors
        temperature, chunk, dtype = ctx.settings
        linear = ChunkedLinear(hidden_ME, weight_VE, dtype, ctx.needs_input_grad[:2])
        # d logprob / d logits = onehot - softmax: the negative of the cross-entropy's gradient
        scale_M = grad_M / -temperature
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in chunks(targets_M.shape[0], chunk):
                logits_mV = linear.logits(part)
                for rows, positions in softmax_passes(part, logits_mV):
                    _to_gradient(logits_mV[rows], targets_M[positions, None], scale_M[positions, None], temperature)
                linear.add(part, logits_mV)
                del logits_mV  # before the next chunk's are made
        return (*linear.gradients(hidden_ME.dtype, weight_VE.dtype), None, None, None, None)


def _target_logprobs(logits_rV: Tensor, index_r1: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[target]. Unlike `logsumexp`, `log_softmax` is one kernel on a CPU too."""
    return scale_logits(logits_rV, temperature).log_softmax(-1).gather(1, index_r1)


def _to_gradient(logits_rV: Tensor, index_r1: Tensor, scale_r1: Tensor | None, temperature: float = 1.0) -> Tensor:
    """Returns `_target_logprobs`, and overwrites the logits with scale * (softmax - onehot), the gradient of its negative.

    Needs one exponential per entry: the largest probability is 1 / sum exp(x - max x), so its logarithm gives the
    logsumexp, and unlike the target's probability it cannot underflow.
    """
    x_rV = scale_logits(logits_rV, temperature)
    highest_r1, target_r1 = x_rV.amax(-1, keepdim=True), x_rV.gather(1, index_r1)
    softmax_rV = x_rV.softmax(-1)
    logprobs_r1 = target_r1 - highest_r1 + softmax_rV.amax(-1, keepdim=True).log()
    softmax_rV.scatter_add_(1, index_r1, torch.full_like(target_r1, -1.0))
    logits_rV.copy_(softmax_rV if scale_r1 is None else softmax_rV.mul_(scale_r1))
    return logprobs_r1
