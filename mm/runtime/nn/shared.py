"""Prompts that several sequences of a pack start with, such as the completions of a group, are computed once.

In a causal model, the hidden state of a token depends only on that token and those before it, so equal prompts have equal
hidden states. All layers of a decoder but attention work on each token separately: they run on U rows, one for each
distinct token. Attention runs on all T tokens.

Legend: T tokens of a pack; U rows that are computed; D tokens that use the row of an earlier token; R rows that several
tokens use; C the largest number of further tokens of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# the least share of repeated tokens for which sharing pays: its four copies per layer take about a hundredth of a step
_MIN_REPEATED = 1 / 16


@attrs.frozen(eq=False)
class SharedPrompts:
    """The map between the T tokens of a pack and the U rows that are computed.

    - `row_T`: the row of each token. `token_U`: the first token of each row.
    - `repeated_R`: the rows with several tokens. `others_RC`: their tokens after the first, padded with T.

    The backward gathers the gradients of `others_RC` and sums them. `index_add` would be shorter, but on some devices it
    adds in a different order each time, and its result is not reproducible.
    """

    row_T: Tensor
    token_U: Tensor
    repeated_R: Tensor
    others_RC: Tensor

    def to_rows(self, x_T: Tensor) -> Tensor:
        """Values of tokens, (T, ...), to those of rows, (U, ...): the value of each row's first token. Differentiable."""
        x_U: Tensor = _ToRows.apply(x_T, self)  # type: ignore[no-untyped-call]
        return x_U

    def to_tokens(self, x_U: Tensor) -> Tensor:
        """Values of rows, (U, ...), to those of tokens, (T, ...): each token gets the value of its row. Differentiable."""
        x_T: Tensor = _ToTokens.apply(x_U, self)  # type: ignore[no-untyped-call]
        return x_T

    def to(self, move: Callable[[Tensor], Tensor]) -> SharedPrompts:
        """The same map with `move` applied to its tensors."""
        return SharedPrompts(*(move(x) for x in (self.row_T, self.token_U, self.repeated_R, self.others_RC)))


def find_shared_prompts(prompts: Sequence[Tensor], starts: Sequence[int], total: int) -> SharedPrompts | None:
    """The shared prompts of a pack of `total` tokens; None if at most a sixteenth of the tokens are repeated.

    `prompts` are the ids of each sequence's prompt, on the CPU; empty if it has none. `starts` are the offsets of the
    sequences.
    """
    first_starts: dict[bytes, int] = {}
    pairs = [(prompt, start) for prompt, start in zip(prompts, starts, strict=False) if len(prompt)]
    repeats = [(first_starts.setdefault(prompt.numpy().tobytes(), start), start, len(prompt)) for prompt, start in pairs]
    if sum(length for first, start, length in repeats if first != start) <= _MIN_REPEATED * total:
        return None
    tokens = torch.arange(total)
    source_T = tokens.clone()
    for first, start, length in repeats:
        source_T[start : start + length] = tokens[first : first + length]
    other_D = (source_T != tokens).nonzero().squeeze(1)
    token_U = (source_T == tokens).nonzero().squeeze(1)
    row_T = torch.empty_like(tokens).index_copy(0, token_U, torch.arange(len(token_U)))[source_T]
    rows_D, order_D = row_T[other_D].sort(stable=True)
    repeated_R, counts_R = rows_D.unique_consecutive(return_counts=True)
    column_D = torch.arange(len(rows_D)) - (counts_R.cumsum(0) - counts_R).repeat_interleave(counts_R)
    others_RC = torch.full((len(repeated_R), int(counts_R.numpy().max())), total)
    others_RC[torch.arange(len(repeated_R)).repeat_interleave(counts_R), column_D] = other_D[order_D]
    return SharedPrompts(row_T, token_U, repeated_R, others_RC)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_U: Tensor, shared: SharedPrompts) -> Tensor:
        ctx.shared = shared
        return x_U.index_select(0, shared.row_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None]:
        shared: SharedPrompts = ctx.shared
        grad_U = grad_T.index_select(0, shared.token_U)
        padded_T = torch.cat((grad_T, grad_T.new_zeros(1, *grad_T.shape[1:])))
        # the rows in repeated_R are distinct, so index_copy_ writes each once
        own_R, others_R = grad_U.index_select(0, shared.repeated_R), padded_T[shared.others_RC].sum(1)
        return grad_U.index_copy_(0, shared.repeated_R, own_R + others_R), None


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_T: Tensor, shared: SharedPrompts) -> Tensor:
        ctx.shared = shared
        return x_T.index_select(0, shared.token_U)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_U: Tensor) -> tuple[Tensor, None]:
        shared: SharedPrompts = ctx.shared
        grad_T = grad_U.new_zeros(len(shared.row_T), *grad_U.shape[1:])
        return grad_T.index_copy_(0, shared.token_U, grad_U), None
