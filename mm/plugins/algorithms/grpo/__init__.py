"""Group relative policy optimization and its kin."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen
from attrs.validators import ge

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import AlgorithmSpec
from mm.plugins.rollouts import RolloutConfig, kl_coefficient, needs


@frozen(kw_only=True)
class GrpoConfig(RolloutConfig):
    """The loss by its paper's name, and what may differ from it."""

    loss_type: str = option(
        "grpo", help="Surrogate and what it is divided by.", choices=("grpo", "dr_grpo", "dapo", "cispo", "gspo")
    )
    scale_rewards: str = option(
        "auto", help="What divides advantages: deviation in the group, in the rollout, or nothing; auto: the loss's own.",
        choices=("auto", "group", "batch", "none"),
    )  # fmt: skip
    kl_coef: float = kl_coefficient(0.04)
    kl_estimator: str = option("k3", help="Estimate of the KL at each token.", choices=("k1", "k2", "k3"))
    dynamic_sampling: bool = option(False, help="Replace groups whose rewards are all equal by further prompts (DAPO).")
    most_resamples: int = option(3, help="How often a rollout may ask for further prompts.", validator=ge(0))


def like_grpo(name: str, summary: str, target: str) -> AlgorithmSpec:
    """An algorithm with grpo's settings, roles and defaults."""
    return AlgorithmSpec(
        name=name,
        summary=summary,
        target=target,
        config=GrpoConfig,
        needs=lambda config: needs(config, reference=config.kl_coef > 0),
        defaults={"learning_rate": 1e-6, "global_batch_size": 8, "max_length": 512},
        starts_from=("sft", "reason", "lora"),
    )


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """grpo."""
    summary = "Reinforcement learning against the mean of a group of completions; also Dr. GRPO, DAPO, CISPO, GSPO."
    yield like_grpo("grpo", summary, "mm.plugins.algorithms.grpo.algorithm:Grpo")
