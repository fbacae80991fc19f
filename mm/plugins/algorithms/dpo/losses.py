"""Losses of pairs. Legend: P pairs.

Each returns (loss_P, margin_P). The loss pushes the margin up; a pair counts as correct if its margin is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.contracts import Answers
from mm.plugins.algorithms.dpo import DpoConfig

Loss = Callable[[Answers, Answers, DpoConfig], tuple[Tensor, Tensor]]


def sigmoid(chosen: Answers, rejected: Answers, config: DpoConfig) -> tuple[Tensor, Tensor]:
    """DPO (arXiv:2305.18290, eq. 7)."""
    return _smoothed(config.strength * (chosen.ratio_P - rejected.ratio_P), config)


def sigmoid_norm(chosen: Answers, rejected: Answers, config: DpoConfig) -> tuple[Tensor, Tensor]:
    """DPO with means over tokens instead of sums (Tulu 3, arXiv:2411.15124, section 5.1.2, eq. 6)."""
    return _smoothed(config.strength * (chosen.mean_ratio_P - rejected.mean_ratio_P), config)


def ipo(chosen: Answers, rejected: Answers, config: DpoConfig) -> tuple[Tensor, Tensor]:
    """IPO (arXiv:2310.12036, eq. 17), with means over tokens, as its authors compute it. The target margin is 1 / (2 beta)."""
    margin_P = chosen.mean_ratio_P - rejected.mean_ratio_P
    return (margin_P - 1 / (2 * config.strength)).square(), margin_P


def simpo(chosen: Answers, rejected: Answers, config: DpoConfig) -> tuple[Tensor, Tensor]:
    """SimPO (arXiv:2405.14734, eq. 6)."""
    margin_P = config.strength * (chosen.mean_ratio_P - rejected.mean_ratio_P)
    return _smoothed(margin_P - (1.0 if config.gamma is None else config.gamma), config)[0], margin_P


def orpo(chosen: Answers, rejected: Answers, config: DpoConfig) -> tuple[Tensor, Tensor]:
    """ORPO (arXiv:2403.07691, eqs. 6 and 7): the chosen answer's mean loss per token plus beta times the odds-ratio loss."""
    margin_P = _log_odds(chosen.mean_ratio_P) - _log_odds(rejected.mean_ratio_P)
    return -chosen.mean_ratio_P - config.strength * F.logsigmoid(margin_P), margin_P


def _log_odds(logprob_P: Tensor) -> Tensor:
    """log(p / (1 - p)). The odds of p = 1 are infinite, so log p is clamped to -eps of its type."""
    logprob_P = logprob_P.clamp(max=-torch.finfo(logprob_P.dtype).eps)
    return logprob_P - torch.log(-torch.expm1(logprob_P))


def _smoothed(margin_P: Tensor, config: DpoConfig) -> tuple[Tensor, Tensor]:
    """(loss_P, margin_P) with -log sigmoid(margin), and -log sigmoid(-margin) for the share `label_smoothing` (cDPO, Mitchell
    2023)."""
    wrong = config.label_smoothing
    return -(1 - wrong) * F.logsigmoid(margin_P) - wrong * F.logsigmoid(-margin_P), margin_P


LOSSES: Mapping[str, Loss] = {
    "sigmoid": sigmoid, "sigmoid_norm": sigmoid_norm, "ipo": ipo, "simpo": simpo, "orpo": orpo,
}  # fmt: skip
