"""Prompts that several sequences of a pack begin with, such as the completions of a group: computed once.

What a causal model computes for a token depends on that token and those before it, so equal beginnings give equal rows.
Everything of a decoder but attention works row by row and can do with the rows that differ; attention sees every token.
Legend: T tokens of a pack, U rows that are computed, D tokens whose row another token has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# four copies a layer cost about a hundredth of a step
_WORTH = 1 / 16


@attrs.frozen(eq=False)
class Shared:
    """Which row each token reads (`row_T`), and which token each row is of (`token_U`).

    `repeated_R` are the rows that several tokens read, and `others_RC` those tokens beside the row's own, filled up with
    T: gradients are added by a gather, for adding by index comes in another order each time on some devices.
    """

    row_T: Tensor
    token_U: Tensor
    repeated_R: Tensor
    others_RC: Tensor

    def to_rows(self, x_T: Tensor) -> Tensor:
        """Of values of all tokens those of the rows. Differentiable."""
        found: Tensor = _ToRows.apply(x_T, self)  # type: ignore[no-untyped-call]
        return found

    def to_tokens(self, x_U: Tensor) -> Tensor:
        """Values of rows, for every token that reads them. Differentiable."""
        found: Tensor = _ToTokens.apply(x_U, self)  # type: ignore[no-untyped-call]
        return found

    def to(self, move: Callable[[Tensor], Tensor]) -> Shared:
        """The same with its tensors moved."""
        return Shared(*(move(x) for x in (self.row_T, self.token_U, self.repeated_R, self.others_RC)))


def find_shared(prompts: Sequence[Tensor], starts: Sequence[int], total: int) -> Shared | None:
    """What the sequences of a pack share whose first ids are `prompts` and which begin at `starts`; None where that is little."""
    leaders: dict[bytes, int] = {}
    asked = [(prompt, start) for prompt, start in zip(prompts, starts, strict=False) if len(prompt)]
    repeats = [(leaders.setdefault(prompt.numpy().tobytes(), start), start, len(prompt)) for prompt, start in asked]
    if sum(length for leader, start, length in repeats if leader != start) <= _WORTH * total:
        return None
    tokens = torch.arange(total)
    source_T = tokens.clone()
    for leader, start, length in repeats:
        source_T[start : start + length] = tokens[leader : leader + length]
    other_D = (source_T != tokens).nonzero().squeeze(1)
    token_U = (source_T == tokens).nonzero().squeeze(1)
    row_T = torch.empty_like(tokens).index_copy(0, token_U, torch.arange(len(token_U)))[source_T]
    rows_D, order_D = row_T[other_D].sort(stable=True)
    repeated_R, counts_R = rows_D.unique_consecutive(return_counts=True)
    place_D = torch.arange(len(rows_D)) - (counts_R.cumsum(0) - counts_R).repeat_interleave(counts_R)
    others_RC = torch.full((len(repeated_R), int(counts_R.numpy().max())), total)
    others_RC[torch.arange(len(repeated_R)).repeat_interleave(counts_R), place_D] = other_D[order_D]
    return Shared(row_T, token_U, repeated_R, others_RC)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_U: Tensor, shared: Shared) -> Tensor:
        ctx.shared = shared
        return x_U.index_select(0, shared.row_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None]:
        shared: Shared = ctx.shared
        grad_U = grad_T.index_select(0, shared.token_U)
        padded_T = torch.cat((grad_T, grad_T.new_zeros(1, *grad_T.shape[1:])))
        # of rows that are all different: nothing is added twice
        own_R, others_R = grad_U.index_select(0, shared.repeated_R), padded_T[shared.others_RC].sum(1)
        return grad_U.index_copy_(0, shared.repeated_R, own_R + others_R), None


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_T: Tensor, shared: Shared) -> Tensor:
        ctx.shared = shared
        return x_T.index_select(0, shared.token_U)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_U: Tensor) -> tuple[Tensor, None]:
        shared: Shared = ctx.shared
        grad_T = grad_U.new_zeros(len(shared.row_T), *grad_U.shape[1:])
        return grad_T.index_copy_(0, shared.token_U, grad_U), None
