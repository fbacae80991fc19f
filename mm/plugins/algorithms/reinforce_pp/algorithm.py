"""REINFORCE++ (arXiv:2501.03262): no groups; rewards are normalised over the whole rollout of all ranks."""

from mm.plugins.algorithms.grpo.algorithm import EPS, SurrogateRollout
from mm.runtime.training.rollouts.advantages import normalise, regroup
from mm.runtime.training.rollouts.completions import Groups, flatten


class ReinforcePlusPlus(SurrogateRollout):
    """The baseline is the mean of the whole rollout. The KL is a term of the loss, as in the paper's variant with groups."""

    def advantages(self, groups: Groups) -> list[list[float]]:
        """(reward - mean) / deviation over every completion of the rollout."""
        rewards = [sample.reward for sample in flatten(groups)]
        return regroup(normalise(self.context.world, rewards, EPS), groups)
