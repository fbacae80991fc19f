"""Reinforcement with an advantage of one's own: `mm -p examples/reinforcement.py train --algo ranked --reward exact`.

The scale of rewards does not matter here, only which of a prompt's completions is better. The loss is the base's: a plain
policy gradient, without clipping, KL or reference.
"""

from mm.contracts import AlgorithmSpec, Rollout, RolloutConfig, hookimpl, rewards_of, rollout_needs


@hookimpl
def mm_algorithms():
    yield AlgorithmSpec(
        name="ranked",
        summary="Reinforcement learning from the ranks of a prompt's completions.",
        target=f"{__name__}:Ranked",
        config=RolloutConfig,
        needs=rollout_needs,
        defaults={"learning_rate": 1e-6, "global_batch_size": 8, "max_length": 512},
        starts_from=("sft",),
    )


class Ranked(Rollout):
    """The share of the group's completions with a lower reward minus the share of those with a higher one, -1 to 1."""

    def advantages(self, groups):
        return [[sum((r > o) - (r < o) for o in group) / len(group) for r in group] for group in rewards_of(groups)]
