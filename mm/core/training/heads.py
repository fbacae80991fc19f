"""Output heads over chunks of positions: no more than one chunk of logits exists at a time.

Legend: M learned positions, E hidden size, V vocabulary. Both heads compute in the autocast type when autocast is on
(in the type of `hidden_ME` otherwise) and reduce in float32; gradients flow through autograd only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# 8M logits a chunk: 32 MiB in float32, and products large enough to run at full speed
_LOGITS_PER_CHUNK = 2**23


def linear_cross_entropy(
    hidden_ME: Tensor,
    weight_VE: Tensor,
    targets_M: Tensor,
    *,
    weights_M: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The SUM over M of weights_M * -log softmax(hidden @ weight.T)[target], a float32 scalar.

    The gradients are made in the forward, chunk by chunk, so that the logits are computed once. `weights_M` gets no
    gradient. M = 0 gives 0 with zero gradients.
    """
    dtype = _compute_dtype(hidden_ME)
    chunk = chunk or _default_chunk(weight_VE)
    # inside forward() gradients are always off, so whether they are wanted must be asked here
    total: Tensor = _LinearCrossEntropy.apply(
        hidden_ME, weight_VE, targets_M, weights_M, chunk, dtype, torch.is_grad_enabled()
    )
    return total


def token_logprobs(
    hidden_ME: Tensor, weight_VE: Tensor, targets_M: Tensor, *, temperature: float = 1.0, chunk: int | None = None
) -> Tensor:
    """log softmax(hidden @ weight.T / temperature)[target] for each of M positions, float32.

    The backward computes each chunk's logits again: what will multiply a gradient is not known in the forward.
    """
    dtype = _compute_dtype(hidden_ME)
    chunk = chunk or _default_chunk(weight_VE)
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
        gradients = _Gradients(hidden_ME, weight_VE, dtype, [with_grad and need for need in ctx.needs_input_grad[:2]])
        total = torch.zeros((), dtype=_reduce_dtype(dtype), device=hidden_ME.device)
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in _chunks(targets_M.shape[0], chunk):
                logits_mV = gradients.logits(part)
                logsumexp_m1 = logits_mV.logsumexp(-1, keepdim=True)
                index_m1 = targets_M[part, None]
                nll_m1 = logsumexp_m1 - logits_mV.gather(1, index_m1)
                scale_m1 = None if weights_M is None else weights_M[part, None]
                total += (nll_m1 if scale_m1 is None else nll_m1 * scale_m1).sum()
                if gradients.wanted:
                    gradients.add(part, _softmax_minus_target(logits_mV, logsumexp_m1, index_m1, scale_m1))
        ctx.save_for_backward(*gradients.result(hidden_ME.dtype, weight_VE.dtype))
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
        linear = _Gradients(hidden_ME, weight_VE, dtype, [False, False])
        logprobs_M, logsumexp_M = (hidden_ME.new_empty(targets_M.shape, dtype=_reduce_dtype(dtype)) for _ in range(2))
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in _chunks(targets_M.shape[0], chunk):
                logits_mV = linear.logits(part).div_(temperature)
                logsumexp_M[part] = logits_mV.logsumexp(-1)
                logprobs_M[part] = logits_mV.gather(1, targets_M[part, None]).squeeze(1) - logsumexp_M[part]
        ctx.save_for_backward(hidden_ME, weight_VE, targets_M, logsumexp_M)
        ctx.settings = temperature, chunk, dtype
        return logprobs_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ME, weight_VE, targets_M, logsumexp_M = ctx.saved_tensors
        temperature, chunk, dtype = ctx.settings
        gradients = _Gradients(hidden_ME, weight_VE, dtype, ctx.needs_input_grad[:2])
        # d logprob / d logits = onehot - softmax: the cross-entropy's gradient with the sign turned
        scale_M = grad_M / -temperature
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in _chunks(targets_M.shape[0], chunk):
                logits_mV = gradients.logits(part).div_(temperature)
                gradients.add(
                    part,
                    _softmax_minus_target(
                        logits_mV, logsumexp_M[part, None], targets_M[part, None], scale_M[part, None]
                    ),
                )
        return (*gradients.result(hidden_ME.dtype, weight_VE.dtype), None, None, None, None)


class _Gradients:
    """A linear layer applied chunk by chunk, gathering d loss / d hidden and, in float32, d loss / d weight."""

    def __init__(self, hidden_ME: Tensor, weight_VE: Tensor, dtype: torch.dtype, needs: list[bool]) -> None:
        self.hidden_ME, self.weight_VE = hidden_ME.to(dtype), weight_VE.to(dtype)
        self.dhidden_ME = torch.empty_like(self.hidden_ME) if needs[0] else None
        self.dweight_VE = torch.zeros_like(weight_VE, dtype=_reduce_dtype(dtype)) if needs[1] else None
        self.wanted = any(needs)

    def logits(self, part: slice) -> Tensor:
        return (self.hidden_ME[part] @ self.weight_VE.t()).to(_reduce_dtype(self.hidden_ME.dtype))

    def add(self, part: slice, dlogits_mV: Tensor) -> None:
        dlogits_mV = dlogits_mV.to(self.hidden_ME.dtype)
        if self.dhidden_ME is not None:
            torch.mm(dlogits_mV, self.weight_VE, out=self.dhidden_ME[part])
        if self.dweight_VE is not None:
            self.dweight_VE += dlogits_mV.t() @ self.hidden_ME[part]

    def result(self, hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        dhidden = None if self.dhidden_ME is None else self.dhidden_ME.to(hidden_dtype)
        return dhidden, None if self.dweight_VE is None else self.dweight_VE.to(weight_dtype)


def _softmax_minus_target(logits_mV: Tensor, logsumexp_m1: Tensor, index_m1: Tensor, scale_m1: Tensor | None) -> Tensor:
    """d(-log softmax) / d logits, in the memory of `logits_mV`."""
    probabilities = logits_mV.sub_(logsumexp_m1).exp_()
    probabilities.scatter_add_(1, index_m1, -torch.ones_like(index_m1, dtype=probabilities.dtype))
    return probabilities if scale_m1 is None else probabilities.mul_(scale_m1)


def _compute_dtype(hidden_ME: Tensor) -> torch.dtype:
    kind = hidden_ME.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ME.dtype


def _reduce_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _default_chunk(weight_VE: Tensor) -> int:
    return max(128, _LOGITS_PER_CHUNK // weight_VE.shape[0])


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, length, chunk)]
