"""Output heads over chunks of positions: no more than one chunk of logits exists at a time.

Legend: M learned positions, E hidden size, V vocabulary. Both heads compute in the autocast type when autocast is on
(in the type of `hidden_ME` otherwise) and reduce in float32; gradients flow through autograd only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# 8M logits a chunk: 16 MiB in bfloat16, and products large enough to run at full speed
_LOGITS_PER_CHUNK = 2**23
# 512K logits at a time pass through the softmax on a CPU: in float32 they stay near the second-level cache, which makes
# the whole head 1.25 times as fast as passes over a chunk; a device with its own memory takes the chunk at once
_LOGITS_PER_PASS = 2**19


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
    dtype = compute_dtype(hidden_ME)
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
    dtype = compute_dtype(hidden_ME)
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
        linear = _Linear(hidden_ME, weight_VE, dtype, [with_grad and need for need in ctx.needs_input_grad[:2]])
        total = torch.zeros((), dtype=_reduce_dtype(dtype), device=hidden_ME.device)
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in _chunks(targets_M.shape[0], chunk):
                logits_mV = linear.logits(part)
                for rows, some in _passes(part, logits_mV):
                    index_r1 = targets_M[some, None]
                    scale_r1 = None if weights_M is None else weights_M[some, None]
                    if linear.wanted:
                        logprobs_r1 = _to_gradient(logits_mV[rows], index_r1, scale_r1)
                    else:
                        logprobs_r1 = _target_logprobs(logits_mV[rows], index_r1)
                    total -= (logprobs_r1 if scale_r1 is None else logprobs_r1 * scale_r1).sum()
                linear.add(part, logits_mV)
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
        linear = _Linear(hidden_ME, weight_VE, dtype, [False, False])
        logprobs_M = hidden_ME.new_empty(targets_M.shape, dtype=_reduce_dtype(dtype))
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in _chunks(targets_M.shape[0], chunk):
                logits_mV = linear.logits(part)
                for rows, some in _passes(part, logits_mV):
                    index_r1 = targets_M[some, None]
                    logprobs_M[some] = _target_logprobs(logits_mV[rows], index_r1, temperature).squeeze(1)
        ctx.save_for_backward(hidden_ME, weight_VE, targets_M)
        ctx.settings = temperature, chunk, dtype
        return logprobs_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ME, weight_VE, targets_M = ctx.saved_tensors
        temperature, chunk, dtype = ctx.settings
        linear = _Linear(hidden_ME, weight_VE, dtype, ctx.needs_input_grad[:2])
        # d logprob / d logits = onehot - softmax: the cross-entropy's gradient with the sign turned
        scale_M = grad_M / -temperature
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in _chunks(targets_M.shape[0], chunk):
                logits_mV = linear.logits(part)
                for rows, some in _passes(part, logits_mV):
                    _to_gradient(logits_mV[rows], targets_M[some, None], scale_M[some, None], temperature)
                linear.add(part, logits_mV)
        return (*linear.gradients(hidden_ME.dtype, weight_VE.dtype), None, None, None, None)


class _Linear:
    """A linear layer applied chunk by chunk, gathering d loss / d hidden and, in float32, d loss / d weight."""

    def __init__(self, hidden_ME: Tensor, weight_VE: Tensor, dtype: torch.dtype, needs: Sequence[bool]) -> None:
        self.hidden_ME, self.weight_VE = hidden_ME.to(dtype), weight_VE.to(dtype)
        self.dhidden_ME = torch.empty_like(self.hidden_ME) if needs[0] else None
        self.dweight_VE = torch.zeros_like(weight_VE, dtype=_reduce_dtype(dtype)) if needs[1] else None
        self.wanted = any(needs)

    def logits(self, part: slice) -> Tensor:
        return self.hidden_ME[part] @ self.weight_VE.t()

    def add(self, part: slice, dlogits_mV: Tensor) -> None:
        if self.dhidden_ME is not None:
            torch.mm(dlogits_mV, self.weight_VE, out=self.dhidden_ME[part])
        if self.dweight_VE is not None:
            self.dweight_VE += dlogits_mV.t() @ self.hidden_ME[part]

    def gradients(self, hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        dhidden = None if self.dhidden_ME is None else self.dhidden_ME.to(hidden_dtype)
        return dhidden, None if self.dweight_VE is None else self.dweight_VE.to(weight_dtype)


def _target_logprobs(logits_rV: Tensor, index_r1: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[target]. Unlike `logsumexp`, `log_softmax` is one kernel on a CPU too."""
    return _divided(logits_rV, temperature).log_softmax(-1).gather(1, index_r1)


def _to_gradient(logits_rV: Tensor, index_r1: Tensor, scale_r1: Tensor | None, temperature: float = 1.0) -> Tensor:
    """`_target_logprobs`; the logits themselves become scale * (softmax - onehot), the gradient of its negative.

    One exponential an entry: the largest probability is 1 / sum exp(x - max x), so it gives the logsumexp too, and
    unlike the target's own probability it cannot underflow.
    """
    x_rV = _divided(logits_rV, temperature)
    highest_r1, target_r1 = x_rV.amax(-1, keepdim=True), x_rV.gather(1, index_r1)
    softmax_rV = x_rV.softmax(-1)
    logprobs_r1 = target_r1 - highest_r1 + softmax_rV.amax(-1, keepdim=True).log()
    softmax_rV.scatter_add_(1, index_r1, torch.full_like(target_r1, -1.0))
    logits_rV.copy_(softmax_rV if scale_r1 is None else softmax_rV.mul_(scale_r1))
    return logprobs_r1


def _divided(logits_rV: Tensor, temperature: float) -> Tensor:
    """logits / temperature in the type of reductions; never written to, as it may be `logits_rV` itself."""
    x_rV = logits_rV.to(_reduce_dtype(logits_rV.dtype))
    return x_rV if temperature == 1.0 else x_rV / temperature


def compute_dtype(hidden_ME: Tensor) -> torch.dtype:
    """The type in which products are computed: autocast's when it is on, else the tensor's own."""
    kind = hidden_ME.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ME.dtype


def _reduce_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _default_chunk(weight_VE: Tensor) -> int:
    return max(128, _LOGITS_PER_CHUNK // weight_VE.shape[0])


def _passes(part: slice, logits_mV: Tensor) -> Iterator[tuple[slice, slice]]:
    """The rows of a chunk that pass through the softmax together: their places in the chunk, and among all M."""
    count, vocabulary = logits_mV.shape
    step = max(1, _LOGITS_PER_PASS // vocabulary) if logits_mV.device.type == "cpu" else count
    for rows in _chunks(count, step):
        yield rows, slice(part.start + rows.start, part.start + min(rows.stop, count))


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, length, chunk)]
