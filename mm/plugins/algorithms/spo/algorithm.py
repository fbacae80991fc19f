"""SPO (Single-stream Policy Optimization, arXiv:2509.13232): a baseline that remembers, instead of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from mm.contracts import Watch
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.algorithms.spo.tracker import Prioritised, ValueTracker
from mm.plugins.rollouts.base import Groups
from mm.plugins.rollouts.samples import Sample
from mm.plugins.rollouts.statistics import over_ranks
from mm.plugins.rollouts.watch import RANGES

_ALL = -1  # the prompt under which the global tracker keeps its value


class Spo(Grpo):
    """A completion's advantage is its success (the reward, scaled to 0 to 1) against the tracked value of its prompt.

    The KL by which a prompt's value is forgotten is measured on the prompt's last completion: its log-probabilities
    then and now. The global tracker (MiniMind's) takes the change of the mean log-probability instead, as MiniMind does.
    """

    watch: ClassVar[Mapping[str, Watch]] = {
        **RANGES, "reward_clamped": Watch(
            high=0.1, meaning="rewards beyond --reward-low or --reward-high count as these and differ no more: give the bounds "
            "that the rewards have together",
        ),
    }  # fmt: skip

    def __init__(self, config: Any, models: Any, context: Any) -> None:
        super().__init__(config, models, context)
        self.tracker = ValueTracker(config.kl_half_life, config.least_kept, config.rho_high)

    def order(self, order: Any, rows: Sequence[int]) -> Any:
        """Prompts by the uncertainty of their outcome."""
        if not self.config.by_uncertainty:
            return order
        explore = 0.05 if self.config.explore is None else self.config.explore
        return Prioritised(rows, self.tracker, explore, self.context.seed)

    def compare(self, groups: Groups) -> None:
        """success - value, then normalised and clipped; the tracker learns afterwards, on every rank alike."""
        samples = [sample for group in groups for sample in group]
        for sample in samples:
            sample.advantage = self.success(sample) - self.tracker.known(self.prompt(sample)).value
        if self.config.normalise:
            middle, spread = over_ranks(self.context.world, [sample.advantage for sample in samples])
            for sample in samples:
                sample.advantage = (sample.advantage - middle) / (spread + 1e-4)
        if (limit := self.config.advantage_clip) is not None:
            for sample in samples:
                sample.advantage = max(-limit, min(limit, sample.advantage))
        self._track(samples)

    def beside(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """With the share of rewards that lie outside what counts as failure and as success."""
        low, high = self.config.reward_low, self.config.reward_high
        outside = sum(not low <= sample.reward <= high for sample in samples)
        return {**super().beside(samples), "reward_clamped": (float(outside), float(len(samples)))}

    def success(self, sample: Sample) -> float:
        """The reward between 0 and 1, which one outside its bounds is taken for."""
        low, high = float(self.config.reward_low), float(self.config.reward_high)
        return min(1.0, max(0.0, (sample.reward - low) / (high - low)))

    def prompt(self, sample: Sample) -> int:
        """Under which number the tracker knows a sample's prompt."""
        return _ALL if self.config.value_tracker == "global" else sample.unit.row_index

    def state_dict(self) -> dict[str, Any]:
        """With the tracker."""
        return {**super().state_dict(), "tracker": self.tracker.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.tracker.load_state_dict(state["tracker"])

    def _track(self, samples: Sequence[Sample]) -> None:
        """Every rank counts the outcomes of all ranks, in one order."""
        if self.config.value_tracker == "global":
            return self._track_all(samples)
        gaps = self._moved(samples)
        mine = [(s.unit.row_index, s.key, self.success(s), gap, _memory(s)) for s, gap in zip(samples, gaps, strict=True)]
        every = [entry for part in self.context.world.gather(mine) for entry in part]
        for prompt, _, success, gap, memory in sorted(every, key=lambda entry: entry[:2]):
            self.tracker.update(prompt, success, gap, memory)

    def _track_all(self, samples: Sequence[Sample]) -> None:
        logprobs = [value for s in samples for value, learned in zip(s.logprobs, s.learn, strict=True) if learned]
        mean = over_ranks(self.context.world, logprobs)[0]
        before = self.tracker.known(_ALL).logprobs.tolist()
        success = over_ranks(self.context.world, [self.success(sample) for sample in samples])[0]
        gap = abs(mean - before[0]) if before else 0.0
        self.tracker.update(_ALL, success, gap, {"ids": [0], "learn": [True], "logprobs": [mean]})

    def _moved(self, samples: Sequence[Sample]) -> list[float]:
        """KL(policy that last answered a prompt || present one), estimated on that answer: mean of r - 1 - log r."""
        last = [self.tracker.known(sample.unit.row_index) for sample in samples]
        known = [
            Sample(unit=s.unit, row=s.row, key=s.key, ids=k.ids.tolist(), learn=k.learn.tolist(), logprobs=k.logprobs.tolist())
            for s, k in zip(samples, last, strict=True)
            if k.learn.any()
        ]
        now = iter(self.logprobs("policy", known))
        gaps = []
        for k in last:
            if not k.learn.any():
                gaps.append(0.0)
                continue
            log = next(now) - torch.from_numpy(k.logprobs[k.learn])
            gaps.append(float((log.exp() - 1 - log).mean()))
        return gaps


def _memory(sample: Sample) -> dict[str, Sequence[Any]]:
    return {"ids": sample.ids, "learn": sample.learn, "logprobs": sample.logprobs}
