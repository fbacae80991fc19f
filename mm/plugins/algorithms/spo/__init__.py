"""Single-stream policy optimization."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen
from attrs.validators import ge, gt, le, optional

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import AlgorithmSpec
from mm.plugins.algorithms.grpo import GrpoConfig
from mm.plugins.rollouts import kl_coefficient, needs


@frozen(kw_only=True)
class SpoConfig(GrpoConfig):
    """The value tracker, and what is drawn next."""

    num_generations: int = option(1, help="Completions drawn for each prompt.", validator=gt(0))
    loss_type: str = option(
        "dapo", help="Surrogate and what it is divided by.", choices=("grpo", "dr_grpo", "dapo", "cispo", "gspo")
    )
    kl_coef: float = kl_coefficient(0.02)
    value_tracker: str = option(
        "prompt", help="One value for each prompt (the paper's), or one for all of them (MiniMind's).",
        choices=("prompt", "global"),
    )  # fmt: skip
    reward_low: float = option(0.0, help="Reward that counts as failure; the tracker knows shares of success.")
    reward_high: float = option(1.0, help="Reward that counts as success.")
    kl_half_life: float = option(0.06, help="KL after which half of what is known of a prompt is forgotten.", validator=gt(0.0))
    rho_low: float = option(0.5, help="Least share of the known that is kept at an update.", validator=[gt(0.0), le(1.0)])
    rho_high: float = option(0.96, help="Largest share that is kept.", validator=[gt(0.0), le(1.0)])
    advantage_clip: float | None = option(5.0, help="Largest advantage.", validator=optional(gt(0.0)))
    normalise: bool = option(True, help="Normalise advantages over the rollout (the paper's; MiniMind does not).")
    prioritised: bool = option(True, help="Draw prompts the more often the less certain their outcome is.")
    explore: float = option(0.05, help="Weight that every prompt has beside its uncertainty.", validator=ge(0.0))

    def __attrs_post_init__(self) -> None:
        if not (self.reward_low < self.reward_high and self.rho_low < 1 and self.rho_low <= self.rho_high):
            raise ValueError("'reward_low' must be below reward_high, and 'rho_low' below 1 and not above rho_high")


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """spo."""
    yield AlgorithmSpec(
        name="spo",
        summary="Reinforcement learning with one completion a prompt, against what earlier ones of it earned.",
        target="mm.plugins.algorithms.spo.algorithm:Spo",
        config=SpoConfig,
        needs=lambda config: needs(config, reference=config.kl_coef > 0),
        defaults={"learning_rate": 1e-6, "global_batch_size": 64, "max_length": 512},
        starts_from=("sft", "reason", "lora"),
    )
