"""Proximal policy optimization with a critic."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from mm.contracts import AlgorithmSpec, RolloutConfig, hookimpl, kl_coefficient, option, rollout_needs
from mm.runtime.training.rollouts.options import only_if


@frozen(kw_only=True)
class PpoConfig(RolloutConfig):
    """PPO's own options. Clipping, GAE, passes and weights are by default MiniMind 3's; the KL and its bound are not."""

    num_generations: int = option(1, help="Completions drawn for each prompt.", within="[1, inf)")
    passes: int = option(2, help="Passes over the completions of one rollout.", within="[1, inf)")
    clip_low: float = option(0.2, help="The ratio of new to old probability counts down to 1 minus this.", within="[0, 1]")
    clip_high: float = option(0.2, help="The ratio counts up to 1 plus this.", within="[0, inf)")
    gamma: float = option(1.0, help="Discount of later rewards.", within="[0, 1]")
    gae_lambda: float = option(
        0.95, help="Generalised advantage estimation: 0 trusts the critic, 1 the rewards.", within="[0, 1]"
    )
    value_coef: float = option(0.5, help="Weight of the critic's loss.", within="[0, inf)")
    value_clip: float = option(0.2, help="How far a value may move from what it was at the rollout.", within="(0, inf)")
    kl_coef: float = kl_coefficient(0.02)
    kl_in: str | None = option(
        None, help="The KL is taken from each token's reward (reward, the default), or its estimate k3 is added to the loss "
        "(loss, MiniMind 3's).",
        choices=("reward", "loss"), validator=only_if(lambda c: c.kl_coef, "needs a --kl-coef above 0"),
    )  # fmt: skip
    kl_target: float | None = option(
        None, help="Adapt --kl-coef so that the KL, its mean over all drawn tokens, is about this.",
        within="(0, inf)", validator=only_if(lambda c: c.kl_coef, "needs a --kl-coef above 0 to adapt"),
    )  # fmt: skip
    kl_stop: float | None = option(
        0.25, help="Drop the rest of a rollout's mini-batches when the KL to the policy that drew them exceeds this.",
        within="(0, inf)",
    )  # fmt: skip
    kl_stop_estimator: str | None = option(
        None, help="Estimate of the KL that --kl-stop bounds: k3, the default, or k2, half the squared log-ratio (MiniMind 3's).",
        choices=("k2", "k3"), validator=only_if(lambda c: c.kl_stop is not None, "needs a --kl-stop"),
    )  # fmt: skip

    @property
    def kl_in_loss(self) -> bool:
        """True if the KL is a term of the loss, False if it is part of the reward."""
        return self.kl_in == "loss"


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "ppo"."""
    yield AlgorithmSpec(
        name="ppo",
        summary="Reinforcement learning with a critic that values every token.",
        target="mm.plugins.algorithms.ppo.algorithm:Ppo",
        config=PpoConfig,
        needs=lambda config: rollout_needs(config, reference=config.kl_coef > 0, critic=True),
        defaults={"learning_rate": 1e-6, "global_batch_size": 16, "max_length": 512},
        starts_from=("sft", "reason", "lora"),
    )
