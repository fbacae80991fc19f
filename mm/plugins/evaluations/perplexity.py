"""Perplexity and bits per byte of encoded rows, over the tokens that a training would learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from mm.runtime.nn.batch import Packed, pack, split_by_tokens
from mm.runtime.nn.heads import token_logprobs

if TYPE_CHECKING:
    import numpy as np

    from mm.runtime.data.store import Store

# units read at a time and packed together: enough to fill packs well, few enough to hold in memory
_WINDOW = 1024


@attrs.define(kw_only=True)
class TextScore:
    """The number of documents (units), and sums over their learned tokens: the number of tokens, the bytes of text that they
    stand for (0 for a special token), and the negative log-likelihood `nll` in nats."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    nll: float = 0.0


@torch.no_grad()
def score_text(
    model: nn.Module,
    store: Store,
    rows: Sequence[int],
    token_bytes: np.ndarray,
    *,
    device: torch.device,
    batch_tokens: int,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> TextScore:
    """Score the units with the indices `rows` of a store, packed to at most `batch_tokens` tokens per forward pass.

    `token_bytes` (V,) is the length of each token in bytes. `on_tokens` is called with the number of tokens after each pass.
    Up to rounding, the result does not depend on how units are packed.
    """
    sizes, score = torch.from_numpy(token_bytes), TextScore(documents=len(rows))
    for start in range(0, len(rows), _WINDOW):
        units = [store.unit(int(index)) for index in rows[start : start + _WINDOW]]
        for group in split_by_tokens(units, batch_tokens):
            batch = pack(group)
            score.nll -= float(_logprobs(model, batch.to(device)).double().sum())
            score.tokens += batch.num_targets
            score.bytes += int(sizes[batch.targets].sum())
            on_tokens(batch.num_tokens)
    return score


def _logprobs(model: nn.Module, batch: Packed) -> torch.Tensor:
    def head(hidden_TE: torch.Tensor, weight_VE: torch.Tensor) -> Any:
        return token_logprobs(hidden_TE[batch.target_index], weight_VE, batch.targets)

    logprobs_M: torch.Tensor = model(batch, head=head)[0]
    return logprobs_M
