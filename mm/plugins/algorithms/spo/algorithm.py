"""SPO (Single-stream Policy Optimization, arXiv:2509.13232): the baseline is a tracked value instead of a group's mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from mm.contracts import Metrics, Sample, Watch
from mm.plugins.algorithms.grpo.algorithm import EPS, SurrogateRollout
from mm.plugins.algorithms.spo import SpoConfig
from mm.plugins.algorithms.spo.tracker import Prioritised, TrackedPrompt, ValueTracker
from mm.runtime.training.rollouts.advantages import clip, mean_and_deviation, normalise, regroup
from mm.runtime.training.rollouts.completion_metrics import RANGES
from mm.runtime.training.rollouts.completions import Groups, flatten

_ALL = -1  # the prompt under which the global tracker keeps its value


class Spo(SurrogateRollout):
    """A completion's advantage is its success (the reward, scaled to 0 to 1) relative to the tracked value of its prompt.

    A prompt's counts are forgotten by the KL since its last completion, estimated from that completion's log-probabilities
    then and now. The global tracker (MiniMind's) uses the change of the mean log-probability instead, as MiniMind does.
    """

    config: SpoConfig
    state = ("tracker",)
    watch: ClassVar[Mapping[str, Watch]] = {
        **RANGES, "reward_clamped": Watch(
            high=0.1, meaning="rewards beyond --reward-low or --reward-high count as these and no longer differ: pass the "
            "smallest and largest sum of the rewards",
        ),
    }  # fmt: skip

    def __init__(self, config: SpoConfig, models: Any, context: Any) -> None:
        super().__init__(config, models, context)
        self.tracker = ValueTracker(config.kl_half_life, config.least_kept, config.rho_high)

    def order(self, order: Any, rows: Sequence[int]) -> Any:
        """Prompts by the uncertainty of their outcome if `by_uncertainty`; otherwise the default order."""
        if not self.config.by_uncertainty:
            return order
        explore = 0.05 if self.config.explore is None else self.config.explore
        return Prioritised(rows, self.tracker, explore, self.context.seed)

    def advantages(self, groups: Groups) -> list[list[float]]:
        """success - tracked value, then normalised and clipped. Afterwards the tracker is updated, in the same way on every
        rank."""
        samples = flatten(groups)
        found = [self.success(sample) - self.tracker.look_up(self.prompt(sample)).value for sample in samples]
        if self.config.normalise:
            found = normalise(self.context.world, found, EPS)
        if (limit := self.config.advantage_clip) is not None:
            found = clip(found, limit)
        self._track(samples)
        return regroup(found, groups)

    def rollout_metrics(self, samples: Sequence[Sample]) -> Metrics:
        """As `Rollout.rollout_metrics`, with the share of rewards outside --reward-low and --reward-high."""
        low, high = self.config.reward_low, self.config.reward_high
        outside = sum(not low <= sample.reward <= high for sample in samples)
        clamped: Any = {"reward_clamped": (float(outside), float(len(samples)))}
        return {**super().rollout_metrics(samples), **clamped}

    def success(self, sample: Sample) -> float:
        """The reward scaled from its bounds to 0 to 1, and clamped."""
        low, high = float(self.config.reward_low), float(self.config.reward_high)
        return min(1.0, max(0.0, (sample.reward - low) / (high - low)))

    def prompt(self, sample: Sample) -> int:
        """The number under which the tracker knows a sample's prompt."""
        return _ALL if self.config.value_tracker == "global" else sample.unit.row_index

    def _track(self, samples: Sequence[Sample]) -> None:
        """Update the tracker with the outcomes of all ranks; every rank does so in the same order."""
        if self.config.value_tracker == "global":
            return self._track_all(samples)
        kls = self._kl_since_last(samples)
        mine = [(s.unit.row_index, s.key, self.success(s), kl, _last_completion(s)) for s, kl in zip(samples, kls, strict=True)]
        every = [entry for part in self.context.world.gather(mine) for entry in part]
        for prompt, _, success, kl, memory in sorted(every, key=lambda entry: entry[:2]):
            self.tracker.update(prompt, success, kl, memory)

    def _track_all(self, samples: Sequence[Sample]) -> None:
        world = self.context.world
        mean = mean_and_deviation(world, [value for sample in samples for value in sample.drawn_logprobs])[0]
        before = self.tracker.look_up(_ALL).logprobs.tolist()
        success = mean_and_deviation(world, [self.success(sample) for sample in samples])[0]
        moved = abs(mean - before[0]) if before else 0.0
        self.tracker.update(_ALL, success, moved, {"ids": [0], "learn": [True], "logprobs": [mean]})

    def _kl_since_last(self, samples: Sequence[Sample]) -> list[float]:
        """KL(policy at the prompt's last completion || present policy) per sample, estimated on that completion as the mean of
        r - 1 - log r; 0 for a prompt without one."""
        last = [self.tracker.look_up(sample.unit.row_index) for sample in samples]
        known = [_as_sample(sample, one) for sample, one in zip(samples, last, strict=True) if one.learn.any()]
        now = iter(self.logprobs("policy", known))
        kls = []
        for one in last:
            if not one.learn.any():
                kls.append(0.0)
                continue
            log = next(now) - torch.from_numpy(one.logprobs[one.learn])
            kls.append(float((log.exp() - 1 - log).mean()))
        return kls


def _last_completion(sample: Sample) -> dict[str, Sequence[Any]]:
    return {"ids": sample.ids, "learn": sample.learn, "logprobs": sample.logprobs}


def _as_sample(sample: Sample, last: TrackedPrompt) -> Sample:
    """The last completion of a sample's prompt, as a sample."""
    kept = {name: getattr(last, name).tolist() for name in ("ids", "learn", "logprobs")}
    return Sample(unit=sample.unit, row=sample.row, key=sample.key, **kept)
