"""RLOO (arXiv:2402.14740): what a completion is worth against the mean of the others, which its own reward is not in."""

from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.rollouts.base import Groups


class Rloo(Grpo):
    """Not divided by a deviation nor, with the default loss, by the completion's length: while a rollout is used once the
    gradient is the paper's (up to the constant --max-new-tokens), unbiased. Used again, ratios are those of tokens."""

    def compare(self, groups: Groups) -> None:
        """reward - mean of the others; 0 for a group of one."""
        for group in groups:
            total = sum(sample.reward for sample in group)
            for sample in group:
                others = len(group) - 1
                sample.advantage = sample.reward - (total - sample.reward) / others if others else 0.0
