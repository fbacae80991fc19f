"""Losses of a policy on tokens that it drew, per token. Legend: M drawn tokens of a pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mm.runtime.training.rollouts.experience import DrawnTokens

if TYPE_CHECKING:
    from torch import Tensor


def policy_gradient(tokens: DrawnTokens) -> Tensor:
    """-ratio A, (M,): REINFORCE (Williams 1992), with importance weights if a rollout is used more than once."""
    return -tokens.ratio_M * tokens.advantages_M


def clipped_surrogate(tokens: DrawnTokens, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(loss_M, clipped_M): PPO's surrogate -min(ratio A, clip(ratio, 1 - low, 1 + high) A) (arXiv:1707.06347, eq. 7), with
    separate bounds as in DAPO, and a mask of the tokens that it clips."""
    return clip_ratio(tokens.ratio_M, tokens.advantages_M, low, high)


def clip_ratio(ratio_M: Tensor, advantages_M: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(loss_M, clipped_M): `clipped_surrogate` for any ratio. A token is clipped, and has no gradient, if its ratio is beyond the
    bound towards which its advantage moves it."""
    loss_M = -(ratio_M * advantages_M).minimum(ratio_M.clamp(1 - low, 1 + high) * advantages_M)
    clipped_M = ((ratio_M > 1 + high) & (advantages_M > 0)) | ((ratio_M < 1 - low) & (advantages_M < 0))
    return loss_M, clipped_M.detach()


# estimators of KL(policy || reference) as functions of log_M = reference - policy (Schulman 2020, joschu.net/blog/kl-approx.html)
KL_ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_M: -log_M,
    "k2": lambda log_M: 0.5 * log_M.square(),
    "k3": lambda log_M: log_M.exp() - log_M - 1,
}


def estimate_kl(estimator: str, logprobs_M: Tensor, reference_M: Tensor) -> Tensor:
    """An estimate of KL(policy || reference) at each drawn token, (M,). Raises KeyError unless `estimator` is in
    `KL_ESTIMATORS`."""
    return KL_ESTIMATORS[estimator](reference_M - logprobs_M)
