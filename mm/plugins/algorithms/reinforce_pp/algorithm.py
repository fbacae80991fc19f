"""REINFORCE++ (arXiv:2501.03262): no groups; rewards are normalised over the whole rollout of all ranks."""

from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.rollouts.base import Groups
from mm.plugins.rollouts.statistics import over_ranks


class ReinforcePlusPlus(Grpo):
    """The global batch is the baseline; the KL stays in the loss, as in the paper's variant with groups."""

    def compare(self, groups: Groups) -> None:
        """(reward - mean) / deviation over every completion of the rollout."""
        samples = [sample for group in groups for sample in group]
        middle, spread = over_ranks(self.context.world, [sample.reward for sample in samples])
        for sample in samples:
            sample.advantage = (sample.reward - middle) / (spread + 1e-4)
