"""The tracked success of each prompt, and the order of prompts that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch

from mm.runtime.training.context import stable_seed

# the empty arrays of a prompt without a completion; those of one take 9 bytes per token, for every prompt that was ever drawn
_NONE = {"ids": np.zeros(0, np.int32), "learn": np.zeros(0, np.bool_), "logprobs": np.zeros(0, np.float32)}


@attrs.define(kw_only=True, eq=False)
class TrackedPrompt:
    """A prompt's counts (alpha, beta of a Beta distribution), and its last completion: token ids, a mask of those that the
    policy drew, and their log-probabilities when they were drawn."""

    alpha: float
    beta: float
    ids: np.ndarray = _NONE["ids"]
    learn: np.ndarray = _NONE["learn"]
    logprobs: np.ndarray = _NONE["logprobs"]

    @property
    def value(self) -> float:
        """The expected share of success."""
        return self.alpha / (self.alpha + self.beta)


class ValueTracker:
    """Beta counts per prompt, discounted as the policy moves (SPO, arXiv:2509.13232, section 3.1).

    An update keeps the share rho = 2 ** (-KL / half_life) of the counts, clamped to rho_low and rho_high. Before its first
    completion a prompt has the value 0.5 and counts that sum to 1 / (1 - rho_low), which discounting never falls below.
    """

    def __init__(self, half_life: float, rho_low: float, rho_high: float) -> None:
        self.half_life, self.rho_low, self.rho_high = half_life, rho_low, rho_high
        self._prompts: dict[int, TrackedPrompt] = {}

    def look_up(self, prompt: int) -> TrackedPrompt:
        """The prompt's counts and last completion; the prior for a prompt that was never drawn."""
        start = 0.5 / (1 - self.rho_low)
        return self._prompts.get(prompt) or TrackedPrompt(alpha=start, beta=start)

    def update(self, prompt: int, success: float, kl: float, last: Mapping[str, Sequence[Any]]) -> None:
        """Discount the counts by `kl`, then add `success` (0 to 1). `last` is the completion that it was observed on."""
        old = self.look_up(prompt)
        rho = min(self.rho_high, max(self.rho_low, 2 ** (-kl / self.half_life)))
        kept = {name: np.asarray(values, _NONE[name].dtype) for name, values in last.items()}
        self._prompts[prompt] = TrackedPrompt(alpha=rho * old.alpha + success, beta=rho * old.beta + 1 - success, **kept)

    def state_dict(self) -> dict[str, Any]:
        """All prompts that were ever drawn, with their completions concatenated."""
        every = list(self._prompts.values())
        kept = {name: [none, *(getattr(known, name) for known in every)] for name, none in _NONE.items()}
        return {
            "counts": {prompt: (known.alpha, known.beta, len(known.ids)) for prompt, known in self._prompts.items()},
            **{name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in kept.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        counts, every, start = state["counts"], {name: state[name].numpy() for name in _NONE}, 0
        self._prompts = {}
        for prompt, (alpha, beta, length) in counts.items():
            last = {name: values[start : start + length].copy() for name, values in every.items()}
            self._prompts[prompt] = TrackedPrompt(alpha=alpha, beta=beta, **last)
            start += length


class Prioritised:
    """Prompts drawn with the weights sqrt(v (1 - v)) + explore, without replacement within a batch (section 3.3).

    The draw is an exponential race (Efraimidis and Spirakis 2006). Its random numbers are a hash of (seed, batch, row), so that
    every rank and every resumed run draws the same.
    """

    def __init__(self, rows: Sequence[int], tracker: ValueTracker, explore: float, seed: int) -> None:
        self.rows, self.batches = [int(row) for row in rows], 0
        self.tracker, self.explore, self.seed = tracker, explore, seed

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> list[int]:
        """The next `count` rows; if that is more than there are, rows come again."""
        taken: list[int] = []
        while len(taken) < count:
            values = np.array([self.tracker.look_up(row).value for row in self.rows])
            weights = np.sqrt(values * (1 - values)) + self.explore
            uniform = np.array([(stable_seed(self.seed, self.batches, row) + 1) / 2**63 for row in self.rows])
            first = np.argsort(-np.log(uniform) / np.maximum(weights, 1e-12), kind="stable")[: count - len(taken)]
            taken += [self.rows[i] for i in first]
            self.batches += 1
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The number of batches drawn. The prompts' values are in the tracker's state."""
        return {"batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.batches = state["batches"]
