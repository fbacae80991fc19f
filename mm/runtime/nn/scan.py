"""A linear recurrence over packed documents by torch's own operators: the default of every backend without its own kernel.

Legend: mm.runtime.nn.batch; any E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm.runtime.nn.chunked import reduce_dtype

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Packed

    Scan = Callable[[Tensor, Tensor, Packed], Tensor]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of passes depends on lengths: packs would recompile
def packed_scan(decay_TE: Tensor, input_TE: Tensor, batch: Packed) -> Tensor:
    """h_TE with h_t = decay_t * h_(t-1) + input_t within each document, from a state of zeros. It is computed in at least float32
    and returned in the type of `input_TE`.

    A document's first decay is not used. To continue a state, add decay * state to the input of the document's first token.
    """
    if not batch.lengths:
        # an empty pack stays in the graph: every parameter then gets its zero gradient, which DDP waits for
        return decay_TE.to(input_TE.dtype) * input_TE
    dtype = reduce_dtype(input_TE.dtype)
    decay_TE = decay_TE.to(dtype).masked_fill(batch.position_ids[:, None] == 0, 0.0)
    h_TE: Tensor = _Scan.apply(decay_TE, input_TE.to(dtype), max(batch.lengths))  # type: ignore[no-untyped-call]
    return h_TE.to(input_TE.dtype)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay_TE: Tensor, input_TE: Tensor, longest: int) -> Tensor:
        h_TE = _recur(decay_TE, input_TE, longest)
        ctx.save_for_backward(decay_TE, h_TE)
        ctx.longest = longest
        return h_TE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor, Tensor, None]:
        decay_TE, h_TE = ctx.saved_tensors
        # the gradient is a recurrence in reverse: dh_t = grad_t + decay_(t+1) * dh_(t+1)
        after_TE = torch.cat((decay_TE[1:], decay_TE.new_zeros(1, decay_TE.shape[1])))
        dh_TE = _recur(after_TE.flip(0), grad_TE.flip(0), ctx.longest).flip(0)
        before_TE = torch.cat((h_TE.new_zeros(1, h_TE.shape[1]), h_TE[:-1]))
        return dh_TE * before_TE, dh_TE, None


def _recur(decay_TE: Tensor, x_TE: Tensor, longest: int) -> Tensor:
    """The recurrence in log2(longest) updates of the whole pack (Hillis and Steele 1986): after the one with step s,
    each h_t includes the inputs of the last 2 s tokens. A decay of zero at a document's first token separates it from the
    document before."""
    step = 1
    while step < longest:
        x_TE = torch.cat((x_TE[:step], torch.addcmul(x_TE[step:], decay_TE[step:], x_TE[:-step])))
        decay_TE = torch.cat((decay_TE[:step], decay_TE[step:] * decay_TE[:-step]))
        step *= 2
    return x_TE
