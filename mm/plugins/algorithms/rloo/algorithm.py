"""RLOO (arXiv:2402.14740): the advantage of a completion is its reward relative to the mean of the group's others."""

from mm.plugins.algorithms.grpo.algorithm import SurrogateRollout
from mm.runtime.training.rollouts.advantages import leave_one_out
from mm.runtime.training.rollouts.completions import Groups, rewards_of


class Rloo(SurrogateRollout):
    """Advantages are not divided by a deviation nor, with the default loss, by the completion's length. If each rollout is used
    for one step, the gradient is the paper's unbiased one, up to the constant --max-new-tokens. In further steps the importance
    ratios are per token."""

    def advantages(self, groups: Groups) -> list[list[float]]:
        """reward - mean of the others; 0 for a group of one."""
        return [leave_one_out(group) for group in rewards_of(groups)]
