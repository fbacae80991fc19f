"""An output head that pulls one model's distribution to another's, without holding all logits of either.

Legend: M learned positions, E and F the models' hidden sizes, V vocabulary, r rows of a pass; x student, t teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm.runtime.nn.chunked import ChunkedLinear, chunks, compute_dtype, default_chunk, divided, passes, reduce_dtype


@attrs.frozen(kw_only=True)
class Distillation:
    """What is minimised at a position: alpha * cross-entropy + (1 - alpha) * temperature^2 * divergence, the latter
    between the softmax of logits / temperature of teacher and student (Hinton et al. 2015, arXiv:1503.02531)."""

    alpha: float = 0.5
    temperature: float = 1.0
    divergence: str = "forward"


def linear_distillation(
    hidden_ME: Tensor,
    weight_VE: Tensor,
    teacher_hidden_MF: Tensor,
    teacher_weight_VF: Tensor,
    targets_M: Tensor,
    what: Distillation,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(objective, cross-entropy, divergence): float32 SUMS over M, of which only the first has gradients, for the student.

    As in `linear_cross_entropy`, the gradients are made in the forward. M = 0 gives zeros with zero gradients.
    """
    dtype, chunk = compute_dtype(hidden_ME), chunk or default_chunk(weight_VE)
    teacher = teacher_hidden_MF.detach(), teacher_weight_VF.detach()
    found: tuple[Tensor, Tensor, Tensor] = _LinearDistillation.apply(
        hidden_ME, weight_VE, teacher, targets_M, what, chunk, dtype, torch.is_grad_enabled()
    )
    return found


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ME: Tensor, weight_VE: Tensor, teacher: tuple[Tensor, Tensor], targets_M: Tensor,
        what: Distillation, chunk: int, dtype: torch.dtype, with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        student = ChunkedLinear(hidden_ME, weight_VE, dtype, [with_grad and need for need in ctx.needs_input_grad[:2]])
        frozen = ChunkedLinear(*teacher, dtype, [False, False])
        sums_2 = torch.zeros(2, dtype=reduce_dtype(dtype), device=hidden_ME.device)
        with torch.autocast(hidden_ME.device.type, enabled=False):
            for part in chunks(targets_M.shape[0], chunk):
                x_mV, t_mV = student.logits(part), frozen.logits(part)
                for rows, some in passes(part, x_mV):
                    sums_2 += _distil(x_mV[rows], t_mV[rows], targets_M[some, None], what, student.wanted)
                student.add(part, x_mV)
        ctx.save_for_backward(*student.gradients(hidden_ME.dtype, weight_VE.dtype))
        cross_entropy, divergence = sums_2.unbind()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return what.alpha * cross_entropy + (1 - what.alpha) * what.temperature**2 * divergence, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        saved = [tensor if grad is None or tensor is None else tensor * grad.to(tensor.dtype) for tensor in ctx.saved_tensors]
        return (*((None, None) if grad is None else saved), *(None,) * 6)


def _distil(x_rV: Tensor, t_rV: Tensor, index_r1: Tensor, what: Distillation, wanted: bool) -> Tensor:
    """(cross-entropy, divergence) summed over rows; the student's logits become the objective's gradient."""
    log_1 = divided(x_rV, 1.0).log_softmax(-1)
    log_q = log_1 if what.temperature == 1 else divided(x_rV, what.temperature).log_softmax(-1)
    log_p = divided(t_rV, what.temperature).log_softmax(-1)
    divergence_r1, slope_rV = DIVERGENCES[what.divergence](log_p, log_q)
    cross_entropy = -log_1.gather(1, index_r1).sum()
    if wanted:
        gradient_rV = log_1.exp().scatter_add_(1, index_r1, torch.full_like(index_r1, -1.0, dtype=log_1.dtype))
        x_rV.copy_(gradient_rV.mul_(what.alpha).add_(slope_rV, alpha=(1 - what.alpha) * what.temperature))
    return torch.stack([cross_entropy, divergence_r1.sum()])


def _forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q), which asks the student to cover whatever the teacher may say; its slope is q - p."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1, keepdim=True), log_q.exp() - p


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p), which asks the student to say only what the teacher may (MiniLLM, arXiv:2306.08543)."""
    q, gap = log_q.exp(), log_q - log_p
    divergence = (q * gap).sum(-1, keepdim=True)
    return divergence, q * (gap - divergence)


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Half of KL(p || m) and half of KL(q || m), with m in the middle of p and q."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    p, q, gap = log_p.exp(), log_q.exp(), log_q - log_m
    of_q = (q * gap).sum(-1, keepdim=True)
    return ((p * (log_p - log_m)).sum(-1, keepdim=True) + of_q) / 2, q * (gap - of_q) / 2


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": _forward_kl, "reverse": _reverse_kl, "jsd": _jensen_shannon,
}  # fmt: skip
"""name -> (log p of the teacher, log q of the student, both at the temperature) -> (the divergence of each row, and its
derivative by the student's logits / temperature)."""
