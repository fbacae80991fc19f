"""The tracked success of each prompt, and the order of prompts that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch

from mm.runtime.training.context import stable_seed

# nothing of what is kept of a completion: 9 bytes a token, for every prompt that was ever drawn
_NONE = {"ids": np.zeros(0, np.int32), "learn": np.zeros(0, np.bool_), "logprobs": np.zeros(0, np.float32)}


@attrs.define(kw_only=True, eq=False)
class Known:
    """The counts of a Beta distribution, and the last completion: its ids, which of them were drawn, and with which
    log-probabilities."""

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
    """Beta counts by prompt that forget as the policy moves (SPO, arXiv:2509.13232, section 3.1).

    At an update rho = 2 ** (-KL / half_life), within its bounds, of the counts is kept. Before the first completion a
    prompt counts as known to be even, with the weight 1 / (1 - rho_low) that forgetting never falls below.
    """

    def __init__(self, half_life: float, rho_low: float, rho_high: float) -> None:
        self.half_life, self.rho_low, self.rho_high = half_life, rho_low, rho_high
        self._known: dict[int, Known] = {}

    def known(self, prompt: int) -> Known:
        """What is known of a prompt."""
        start = 0.5 / (1 - self.rho_low)
        return self._known.get(prompt) or Known(alpha=start, beta=start)

    def update(self, prompt: int, success: float, kl: float, last: Mapping[str, Sequence[Any]]) -> None:
        """Forget by `kl`, then count `success` (0 to 1); `last` is the completion that had it."""
        old = self.known(prompt)
        rho = min(self.rho_high, max(self.rho_low, 2 ** (-kl / self.half_life)))
        kept = {name: np.asarray(values, _NONE[name].dtype) for name, values in last.items()}
        self._known[prompt] = Known(alpha=rho * old.alpha + success, beta=rho * old.beta + 1 - success, **kept)

    def state_dict(self) -> dict[str, Any]:
        """Every prompt that was ever drawn; their completions laid end to end."""
        every = list(self._known.values())
        kept = {name: [none, *(getattr(known, name) for known in every)] for name, none in _NONE.items()}
        return {
            "counts": {prompt: (known.alpha, known.beta, len(known.ids)) for prompt, known in self._known.items()},
            **{name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in kept.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        counts, every, start = state["counts"], {name: state[name].numpy() for name in _NONE}, 0
        self._known = {}
        for prompt, (alpha, beta, length) in counts.items():
            last = {name: values[start : start + length].copy() for name, values in every.items()}
            self._known[prompt] = Known(alpha=alpha, beta=beta, **last)
            start += length


class Prioritised:
    """Prompts drawn without replacement within a batch, with weights sqrt(v (1 - v)) + explore (section 3.3).

    By exponential races (Efraimidis and Spirakis 2006) whose numbers come from (seed, batch, row), so that every rank
    and every resumed run draws the same.
    """

    def __init__(self, rows: Sequence[int], tracker: ValueTracker, explore: float, seed: int) -> None:
        self.rows, self.batches = [int(row) for row in rows], 0
        self.tracker, self.explore, self.seed = tracker, explore, seed

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> list[int]:
        """The next batch; more than there are rows come around again."""
        taken: list[int] = []
        while len(taken) < count:
            values = np.array([self.tracker.known(row).value for row in self.rows])
            weights = np.sqrt(values * (1 - values)) + self.explore
            uniform = np.array([(stable_seed(self.seed, self.batches, row) + 1) / 2**63 for row in self.rows])
            first = np.argsort(-np.log(uniform) / np.maximum(weights, 1e-12), kind="stable")[: count - len(taken)]
            taken += [self.rows[i] for i in first]
            self.batches += 1
        return taken

    def state_dict(self) -> dict[str, Any]:
        """How many batches were drawn; what decides between prompts is the tracker's."""
        return {"batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.batches = state["batches"]
