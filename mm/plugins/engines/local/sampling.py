"""Drawing the next tokens of several rows at once, each row with its own settings and its own random stream.

A draw is decided by one number in [0, 1): the token is the first whose cumulative probability, in the order of the vocabulary,
exceeds it. The number is a hash of the request's key and the draw's index, so a draw does not depend on the slot or the batch.
Legend: A rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mm.contracts import Sampling
from mm.core.errors import UsageError
from mm.runtime.training.context import stable_seed

# the lowest temperature; below it, logits divided by the temperature may overflow
LOWEST = 1e-4


def uniform(seed: int, draw: int) -> float:
    """The number that decides a draw: 32 bits of the hash of (seed, draw), as a multiple of 2**-32 in [0, 1)."""
    return (stable_seed(seed, draw) >> 31) / 2**32


def check_sampling(sampling: Sampling) -> None:
    """Raise UsageError if a setting is out of range."""
    if sampling.temperature != 0 and not LOWEST <= sampling.temperature < float("inf"):
        raise UsageError(f"temperature {sampling.temperature}: expected 0 (greedy) or at least {LOWEST}.")
    if not 0 < sampling.top_p <= 1:
        raise UsageError(f"top_p {sampling.top_p}: expected more than 0 and at most 1 (off).")
    if sampling.top_k < 0:
        raise UsageError(f"top_k {sampling.top_k}: expected 0 (off) or more.")
    if not 0 <= sampling.min_p <= 1:
        raise UsageError(f"min_p {sampling.min_p}: expected a number between 0 (off) and 1.")
    if not 0 < sampling.repetition_penalty < float("inf"):
        raise UsageError(f"repetition_penalty {sampling.repetition_penalty}: expected a number above 0; 1 is off.")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(sampling, name) <= 2:
            raise UsageError(f"{name} {getattr(sampling, name)}: expected a number between -2 and 2; 0 is off.")
    for token, bias in sampling.logit_bias:
        if not -float("inf") < bias < float("inf"):
            raise UsageError(f"logit_bias of token {token} is {bias}: expected a finite number; -100 is as good as never.")


class Sampler:
    """Draws tokens for A rows by their settings, which it holds as tensors. Filters that no row uses are not computed."""

    def __init__(self, rows: Sequence[Sampling], device: torch.device, top: int = 0) -> None:
        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values)).to(device, non_blocking=True)[:, None]

        greedy = [row.temperature == 0 for row in rows]
        self.all_greedy, self.any_greedy = all(greedy), any(greedy)
        self.plain = all(row.temperature in (0, 1) for row in rows)
        self.greedy_A1 = column(greedy)
        self.temperature_A1 = column(row.temperature or 1.0 for row in rows)
        self.top_k = max((row.top_k for row in rows if row.temperature), default=0)
        self.top_k_A1 = column(row.top_k for row in rows)
        self.filters_p = any(row.top_p < 1 and row.temperature for row in rows)
        self.top_p_A1 = column(row.top_p for row in rows)
        self.filters_min_p = any(row.min_p and row.temperature for row in rows)
        self.min_p_A1 = column(row.min_p for row in rows)
        self.penalises = any(row.penalises for row in rows)
        self.top = top

    def __call__(self, logits_AV: Tensor, uniforms: Sequence[float]) -> Tensor:
        """The drawn ids and their log-probabilities, then the ids of the `top` likeliest tokens and their log-probabilities, as
        one float64 tensor (2 + 2 top, A), so that the host waits only once.

        `logits_AV` are penalised and limited already (`Penalties`, `limit`). `uniforms` has the number of each row's draw. The
        log-probabilities are those at the row's temperature (1 if it is greedy), before top-k, top-p and min-p.
        """
        scaled_AV = logits_AV if self.plain else logits_AV / self.temperature_A1
        logprobs_AV = scaled_AV.log_softmax(-1)
        ids_A1 = logits_AV.argmax(-1, keepdim=True) if self.any_greedy else None
        if not self.all_greedy:
            drawn_A1 = self._draw(logprobs_AV, uniforms)
            ids_A1 = drawn_A1 if ids_A1 is None else torch.where(self.greedy_A1, ids_A1, drawn_A1)
        assert ids_A1 is not None
        columns = [ids_A1.double(), logprobs_AV.gather(1, ids_A1).double()]
        return torch.cat([*columns, top_columns(logprobs_AV, self.top)] if self.top else columns, 1).T

    def _draw(self, logprobs_AV: Tensor, uniforms: Sequence[float]) -> Tensor:
        weights_AV = self.filtered(logprobs_AV)
        cumulative_AV = running_sums(weights_AV)
        uniforms_A1 = torch.tensor(uniforms, dtype=torch.float64).to(logprobs_AV.device, non_blocking=True)[:, None]
        # right=True: the first token at which the sum exceeds the number, so never one of probability 0
        drawn_A1 = torch.searchsorted(cumulative_AV, uniforms_A1 * cumulative_AV[:, -1:], right=True)
        # only a NaN sum ends beyond the vocabulary; the log-probability is then NaN too
        return drawn_A1.clamp_(max=logprobs_AV.shape[1] - 1)

    def filtered(self, logprobs_AV: Tensor) -> Tensor:
        """The probabilities after top-k, then top-p, then min-p: zero for dropped tokens, and not normalised again.

        Top-p keeps the smallest set of the likeliest tokens that has at least the share `top_p` of the probability left by top-k.
        Tokens that tie at the edge of a filter are all kept.
        """
        weights_AV = logprobs_AV.exp()
        if self.top_k:
            weights_AV = weights_AV * (weights_AV >= self._top_k_floor(weights_AV))
        if self.filters_p:
            weights_AV = weights_AV * (weights_AV >= self._top_p_floor(weights_AV))
        if self.filters_min_p:
            weights_AV = weights_AV * (weights_AV >= self.min_p_A1 * weights_AV.amax(-1, keepdim=True))
        return weights_AV

    def _top_k_floor(self, weights_AV: Tensor) -> Tensor:
        values_Ak = weights_AV.topk(min(self.top_k, weights_AV.shape[1])).values
        floor_A1 = values_Ak.gather(1, (self.top_k_A1 - 1).clamp(0, values_Ak.shape[1] - 1))
        return floor_A1 * (self.top_k_A1 > 0)

    def _top_p_floor(self, weights_AV: Tensor) -> Tensor:
        ascending_AV = _sorted(weights_AV)
        cumulative_AV = running_sums(ascending_AV)
        dropped_A1 = cumulative_AV[:, -1:] * (1 - self.top_p_A1.double())
        first_A1 = torch.searchsorted(cumulative_AV, dropped_A1, right=True)
        floor_A1 = ascending_AV.gather(1, first_A1.clamp_(max=ascending_AV.shape[1] - 1))
        return floor_A1 * (self.top_p_A1 < 1)


def top_columns(logprobs_AV: Tensor, most: int) -> Tensor:
    """The ids of the `most` likeliest tokens of each row, then their log-probabilities, in float64: (A, 2 most)."""
    values_Ak, ids_Ak = logprobs_AV.topk(most)
    return torch.cat((ids_Ak.double(), values_Ak.double()), 1)


def likeliest(columns: Sequence[float], count: int) -> tuple[tuple[int, float], ...]:
    """The first `count` pairs (id, log-probability) of a row of `top_columns`. Tokens that cannot be drawn are left out."""
    most = len(columns) // 2
    pairs = zip(columns[:count], columns[most : most + count], strict=True)
    return tuple((int(token), logprob) for token, logprob in pairs if logprob > -float("inf"))


def running_sums(weights_AV: Tensor) -> Tensor:
    """The running sums of probabilities in each row, in float64: in float32 the rounding error of the sum exceeds the
    probabilities in the tail of the vocabulary.

    A card adds in an order that differs from call to call, which torch refuses if it is asked for deterministic algorithms.
    Multiples of 2**-52 are then added, whose sum is exact in any order.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return weights_AV.cumsum(-1, dtype=torch.float64)
    return (weights_AV.double() * 2**52).long().cumsum(-1).double() * 2**-52


def _sorted(weights_AV: Tensor) -> Tensor:
    """Each row in ascending order. On the CPU by numpy, whose vectorised sort of values is 10 times as fast as torch's."""
    if weights_AV.device.type == "cpu":
        return torch.from_numpy(np.sort(weights_AV.numpy(), axis=-1))
    return weights_AV.sort(-1).values
