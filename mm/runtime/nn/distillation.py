"""An output head for distillation, which never holds all logits of the student or the teacher at once.

Legend: M learned positions, E and F hidden sizes of student and teacher, V vocabulary, m positions of a chunk, r rows of a
pass; x logits of the student, t of the teacher; p distribution of the teacher, q of the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
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


@attrs.frozen(kw_only=True)
class Distillation:
    """The objective at a position: alpha * cross-entropy + (1 - alpha) * temperature^2 * divergence.

    The divergence is between the teacher's and the student's softmax(logits / temperature), and `divergence` is its name
    in `DIVERGENCES`. Source: Hinton et al. 2015, arXiv:1503.02531.
    """

    alpha: float = 0.5
    temperature: float = 1.0
    divergence: str = "forward"


def linear_distillation(
    hidden_ME: Tensor,
    weight_VE: Tensor,
    teacher_hidden_MF: Tensor,
    teacher_weight_VF: Tensor,
    targets_M: Tensor,
    objective: Distillation,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(objective, cross-entropy, divergence): float32 scalars, SUMS over M. Only the objective is differentiable, and only
    with respect to the student's hidden states and weight.

    As in `linear_cross_entropy`, the gradients are computed in the forward. M = 0 gives zeros with zero gradients.
    """
    dtype, chunk = compute_dtype(hidden_ME), chunk or default_chunk(weight_VE)
    teacher = teacher_hidden_MF.detach(), teacher_weight_VF.detach()
    sums: tuple[Tensor, Tensor, Tensor] = _LinearDistillation.apply(
        hidden_ME, weight_VE, teacher, targets_M, objective, chunk, dtype, torch.is_grad_enabled()
    )
    return sums


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ME: Tensor, weight_VE: Tensor, teacher: tuple[Tensor, Tensor], targets_M: Tensor,
        objective: Distillation, chunk: int, dtype: torch.dtype, with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        student = ChunkedLinear(hidden_ME, weight_VE, dtype, [with_grad and need for need in ctx.needs_input_grad[:2]])
        fixed = ChunkedLinear(*teacher, dtype, [False, False])
        sums_2 = torch.zeros(2, dtype=reduce_dtype(dtype), device=hidden_ME.device)
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in chunks(targets_M.shape[0], chunk):
                x_mV, t_mV = student.logits(part), fixed.logits(part)
                for rows, positions in softmax_passes(part, x_mV):
                    index_r1 = targets_M[positions, None]
                    sums_2 += _distil(x_mV[rows], t_mV[rows], index_r1, objective, student.needs_gradients)
                student.add(part, x_mV)
                del x_mV, t_mV  # before the next chunk's are made
        ctx.save_for_backward(*student.gradients(hidden_ME.dtype, weight_VE.dtype))
        cross_entropy, divergence = sums_2.unbind()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        total = objective.alpha * cross_entropy + (1 - objective.alpha) * objective.temperature**2 * divergence
        return total, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        saved = [tensor if grad is None or tensor is None else tensor * grad.to(tensor.dtype) for tensor in ctx.saved_tensors]
        return (*((None, None) if grad is None else saved), *(None,) * 6)


def _distil(x_rV: Tensor, t_rV: Tensor, index_r1: Tensor, objective: Distillation, with_grad: bool) -> Tensor:
    """(2,): cross-entropy and divergence, summed over the rows. With `with_grad` the student's logits are overwritten by
    the gradient of the objective."""
    alpha, temperature = objective.alpha, objective.temperature
    log_1 = scale_logits(x_rV, 1.0).log_softmax(-1)
    log_q = log_1 if temperature == 1 else scale_logits(x_rV, temperature).log_softmax(-1)
    log_p = scale_logits(t_rV, temperature).log_softmax(-1)
    divergence_r1, slope_rV = DIVERGENCES[objective.divergence](log_p, log_q)
    cross_entropy = -log_1.gather(1, index_r1).sum()
    if with_grad:
        gradient_rV = log_1.exp().scatter_add_(1, index_r1, torch.full_like(index_r1, -1.0, dtype=log_1.dtype))
        x_rV.copy_(gradient_rV.mul_(alpha).add_(slope_rV, alpha=(1 - alpha) * temperature))
    return torch.stack([cross_entropy, divergence_r1.sum()])


def _forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q), with derivative q - p. It makes the student cover everything that the teacher may generate."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1, keepdim=True), log_q.exp() - p


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p). It makes the student generate only what the teacher may generate (MiniLLM, arXiv:2306.08543)."""
    q, gap = log_q.exp(), log_q - log_p
    divergence = (q * gap).sum(-1, keepdim=True)
    return divergence, q * (gap - divergence)


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """The Jensen-Shannon divergence: KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    p, q, gap = log_p.exp(), log_q.exp(), log_q - log_m
    of_q = (q * gap).sum(-1, keepdim=True)
    return ((p * (log_p - log_m)).sum(-1, keepdim=True) + of_q) / 2, q * (gap - of_q) / 2


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": _forward_kl, "reverse": _reverse_kl, "jsd": _jensen_shannon,
}  # fmt: skip
"""name -> function from (log p, log q), both at the temperature, to (the divergence of each row, its derivative with
respect to the student's logits / temperature)."""
