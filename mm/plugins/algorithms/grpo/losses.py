"""The surrogates of GRPO and its variants, by the papers' names. Legend: M drawn tokens of a pack, N completions.

Each returns (loss_M, clipped_M): every token's loss, and a mask of the tokens that it clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mm.contracts import DrawnTokens, clip_ratio, clipped_surrogate

if TYPE_CHECKING:
    from torch import Tensor


def cispo(tokens: DrawnTokens, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(ratio, 1 + high) A log p with the ratio detached (MiniMax-M1, arXiv:2506.13585, eq. 4): the weight of a token is
    clipped, but no token loses its gradient. `low` is not used, as in the paper."""
    ratio_M = tokens.ratio_M.detach()
    return -ratio_M.clamp(max=1 + high) * tokens.advantages_M * tokens.logprobs_M, ratio_M > 1 + high


def gspo(tokens: DrawnTokens, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate with one ratio per completion, exp of the mean of log ratios (GSPO, arXiv:2507.18071, eq. 7)."""
    log_M = tokens.logprobs_M - tokens.old_M
    mean_N = tokens.batch.sum_by_document(log_M) / tokens.length_N.clamp(min=1)
    return clip_ratio(mean_N.exp()[tokens.document_M], tokens.advantages_M, low, high)


SURROGATES: Mapping[str, Callable[[DrawnTokens, float, float], tuple[Tensor, Tensor]]] = {
    "grpo": clipped_surrogate, "dr_grpo": clipped_surrogate, "dapo": clipped_surrogate, "cispo": cispo, "gspo": gspo,
}  # fmt: skip
