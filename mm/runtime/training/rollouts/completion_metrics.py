"""The metrics of rollouts that need no model, their healthy ranges, and advice for leaving these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mm.runtime.training.measures import Metrics, Watch
from mm.runtime.training.rollouts.completions import OVERLONG, Groups, Sample, flatten, has_spread, without_failures

if TYPE_CHECKING:
    from mm.runtime.training.distributed import World

# a policy that mostly gets the best reward has nothing left to explore: equal rewards and a low entropy are then healthy
_MASTERED = ("below_best", 0.25)
RANGES: Mapping[str, Watch] = {
    "engine_gap": Watch(high=0.05, meaning="engine and trainer disagree about log-probabilities: compare --dtype fp32"),
    "engine_gap_max": Watch(
        # logits in bf16 have steps of 0.125 from 16 on, so a single rare token may be off by a factor of e
        high=3.0, meaning="a token's probabilities by engine and trainer differ by more than a factor of 20, which is not "
        "rounding: compare --dtype fp32, and suspect the engine's cache",
    ),
    "clip_fraction": Watch(high=0.3, meaning="many ratios are clipped: fewer passes or a lower learning rate"),
    "no_spread": Watch(
        high=0.8, unless=_MASTERED, meaning="all completions of most prompts have the same reward, which teaches nothing: "
        "read them (mm runs samples), then give other prompts or rewards",
    ),
    "entropy": Watch(
        low=0.02, unless=_MASTERED, meaning="the policy has become almost deterministic before it is good: more KL, a lower "
        "learning rate",
    ),
    "length": Watch(low=1.5, meaning="most completions end at once: read them (mm runs samples), check if a reward favours it"),
    "length_growth": Watch(
        low=0.2, high=3.0, meaning="completions have become much shorter or longer than in the first rollout: read them "
        "(mm runs samples), and check if a reward favours length alone",
    ),
    "truncated": Watch(high=0.5, meaning="most completions reach --max-new-tokens: raise it, or reward shorter ones"),
    "failed_rewards": Watch(high=0.0, meaning="a reward raised or returned an invalid score: see rollouts.jsonl"),
}  # fmt: skip


def completion_metrics(groups: Groups, rewards: Sequence[str], failed: int) -> Metrics:
    """The metrics of rewards, lengths, truncation and groups with equal rewards. `failed` is the number of failed rewards.

    `reward` is the mean over the completions for which no reward failed. `reward/NAME` is the mean over the completions to which
    the reward applies, and `reward/NAME/none` the share of the others.
    """
    samples = flatten(groups)
    count, judged = float(len(samples)), without_failures(samples)
    found: dict[str, tuple[float, float]] = {
        "reward": (sum(s.reward for s in judged), float(len(judged))),
        "length": (float(sum(s.length for s in samples)), count),
    }
    for name in rewards:
        given = [value for s in samples if (value := s.score.by_name[name]) is not None]
        found[f"reward/{name}"] = (sum(given), float(len(given)))
        found[f"reward/{name}/none"] = (count - len(given), count)
    found["failed_rewards"] = (float(failed), count)
    found["truncated"] = (float(sum(s.finish_reason == "length" for s in samples)), count)
    flat = sum(not has_spread(group) for group in groups if len(group) > 1)
    found["no_spread"] = (float(flat), float(sum(len(group) > 1 for group in groups)))
    return found  # type: ignore[return-value]


def widen_range(world: World, known: Sequence[float], samples: Sequence[Sample]) -> list[float]:
    """The smallest and the largest reward of these completions, of all ranks, and of `known`. Every rank must call it."""
    mine = [*known, *(sample.reward for sample in without_failures(samples))]
    every = [reward for found in world.gather([min(mine), max(mine)] if mine else []) for reward in found]
    return [min(every), max(every)] if every else []


def best_reward_metrics(samples: Sequence[Sample], known: Sequence[float]) -> Metrics:
    """The share of completions whose reward is below the largest one of `known`, which is the result of `widen_range`. As long as
    all rewards are equal, every completion counts: nothing tells if that reward is good."""
    judged = without_failures(samples)
    below = sum(min(known) == max(known) or sample.reward < max(known) for sample in judged)
    return {"below_best": (float(below), float(len(judged)))}  # type: ignore[dict-item]


def length_metrics(samples: Sequence[Sample], first_length: float, overlong_buffer: int) -> Metrics:
    """The mean length relative to the first rollout's and, with a buffer, the mean penalty on long completions."""
    count = float(len(samples))
    found = {"length_growth": (sum(float(s.length) for s in samples) / first_length, count)}
    if overlong_buffer:
        found[f"reward/{OVERLONG}"] = (sum(s.score.by_name[OVERLONG] or 0.0 for s in samples), count)
    return found  # type: ignore[return-value]
