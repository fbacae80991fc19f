"""Losses of a policy on tokens it drew. Legend: M learned positions, N completions of a pack.

A surrogate answers each position's loss, and where clipping has cut it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from mm.runtime.nn.batch import Packed, sum_by_document


@attrs.frozen(eq=False)
class DrawnTokens:
    """What a loss sees of a pack: log-probabilities now and when the tokens were drawn, advantages, the completion of
    each position, and how many positions each completion has."""

    batch: Packed
    logprobs_M: Tensor
    old_M: Tensor
    advantages_M: Tensor
    document_M: Tensor
    length_N: Tensor

    @property
    def ratio_M(self) -> Tensor:
        """New probability over old."""
        return (self.logprobs_M - self.old_M).exp()


def document_of(batch: Packed) -> tuple[Tensor, Tensor]:
    """(document_M, length_N) of a pack, without asking the device for anything."""
    document_M = torch.searchsorted(batch.cu_seqlens[1:].long(), batch.target_index, right=True)
    return document_M, sum_by_document(torch.ones_like(document_M, dtype=torch.float32), batch)


def clipped(tokens: DrawnTokens, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(ratio A, clip(ratio) A): PPO's surrogate (arXiv:1707.06347, eq. 7), with bounds of their own (DAPO)."""
    return _pessimistic(tokens.ratio_M, tokens.advantages_M, low, high)


def cispo(tokens: DrawnTokens, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(ratio, 1 + high) A log p, the ratio as a constant (MiniMax-M1, arXiv:2506.13585, eq. 4): what is cut is the
    weight of a token, none loses its gradient. `low` is not used, as in the paper."""
    ratio_M = tokens.ratio_M.detach()
    return -ratio_M.clamp(max=1 + high) * tokens.advantages_M * tokens.logprobs_M, ratio_M > 1 + high


def gspo(tokens: DrawnTokens, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The surrogate with one ratio a completion, exp of the mean of log ratios (GSPO, arXiv:2507.18071, eq. 7)."""
    log_M = tokens.logprobs_M - tokens.old_M
    mean_N = sum_by_document(log_M, tokens.batch) / tokens.length_N.clamp(min=1)
    return _pessimistic(mean_N.exp()[tokens.document_M], tokens.advantages_M, low, high)


def _pessimistic(ratio_M: Tensor, advantages_M: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The worse of a ratio and its bound: a position beyond the bound that its advantage drives it to has no gradient."""
    loss_M = -torch.minimum(ratio_M * advantages_M, ratio_M.clamp(1 - low, 1 + high) * advantages_M)
    beyond_M = ((ratio_M > 1 + high) & (advantages_M > 0)) | ((ratio_M < 1 - low) & (advantages_M < 0))
    return loss_M, beyond_M.detach()


SURROGATES: Mapping[str, Callable[[DrawnTokens, float, float], tuple[Tensor, Tensor]]] = {
    "grpo": clipped, "dr_grpo": clipped, "dapo": clipped, "cispo": cispo, "gspo": gspo,
}  # fmt: skip


def kl(estimator: str, logprobs_M: Tensor, reference_M: Tensor) -> Tensor:
    """An estimate of KL(policy || reference) at each drawn token (Schulman 2020, joschu.net/blog/kl-approx.html)."""
    log_M = reference_M - logprobs_M
    if estimator == "k1":
        return -log_M
    return 0.5 * log_M.square() if estimator == "k2" else log_M.exp() - log_M - 1
