"""Group relative policy optimization (GRPO) and related algorithms: their options and defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Attribute, frozen

from mm.contracts import KL_ESTIMATORS, AlgorithmSpec, Needs, RolloutConfig, hookimpl, kl_coefficient, option, rollout_needs
from mm.runtime.training.rollouts.options import at_least_two, only_if

# how far below and above 1 the ratio may go before it is clipped, from each loss's paper; 1 below is no bound. The paper of
# CISPO does not say its upper bound
BOUNDS: Mapping[str, tuple[float, float]] = {
    "grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "cispo": (1.0, 0.2), "gspo": (3e-4, 4e-4),
}  # fmt: skip

# how each loss averages the losses of tokens, by the names that verl has for it
AGGREGATIONS: Mapping[str, str] = {
    "grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm", "dapo": "token-mean", "cispo": "token-mean",
    "gspo": "seq-mean-token-mean",
}  # fmt: skip


def surrogate(default: str) -> str:
    """The option `loss_type`, the surrogate, with this default."""
    return option(default, help="Surrogate of the policy's objective.", choices=tuple(BOUNDS))  # type: ignore[no-any-return]


def _by_default(side: int) -> str:
    return "by default " + ", ".join(f"{bounds[side]:g} for {loss}" for loss, bounds in BOUNDS.items())


def _has_groups(config: SurrogateConfig, attribute: Attribute[Any], value: bool) -> None:
    if value and config.num_generations < 2:
        raise ValueError("'dynamic_sampling' asks for groups with spread: with --num-generations 1 no group has any")


@frozen(kw_only=True)
class SurrogateConfig(RolloutConfig):
    """The options of a clipped surrogate with a KL penalty, for any kind of advantage."""

    loss_type: str = surrogate("grpo")
    loss_aggregation: str = option(
        "auto", help="Mean over all drawn tokens; over each completion's, then over completions; or the sum by completion, "
        "divided by --max-new-tokens, then the mean; auto: the loss's own.",
        choices=("auto", "token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"),
    )  # fmt: skip
    clip_low: float | None = option(
        None, help=f"The ratio of new to old probability counts down to 1 minus this; {_by_default(0)}.",
        within="[0, 1]", validator=only_if(lambda c: c.loss_type != "cispo", "is not for --loss-type cispo: it cuts above"),
    )  # fmt: skip
    clip_high: float | None = option(
        None, help=f"The ratio counts up to 1 plus this; {_by_default(1)}.", within="[0, inf)"
    )
    kl_coef: float = kl_coefficient(0.04)
    kl_estimator: str | None = option(
        None, help="Estimate of the KL at each token, by default k3; k1 holds nothing: its gradient is 0 on average.",
        choices=tuple(KL_ESTIMATORS), validator=only_if(lambda c: c.kl_coef, "needs a --kl-coef above 0"),
    )  # fmt: skip
    dynamic_sampling: bool = option(
        False, help="Replace groups whose rewards are all equal by further prompts (DAPO).", validator=_has_groups
    )
    most_resamples: int | None = option(
        None, help="How often a rollout may ask for further prompts, by default 3.",
        within="[0, inf)", validator=only_if(lambda c: c.dynamic_sampling, "needs --dynamic-sampling"),
    )  # fmt: skip

    @property
    def aggregation(self) -> str:
        """`loss_aggregation`, or by default the loss's own (`AGGREGATIONS`)."""
        return AGGREGATIONS[self.loss_type] if self.loss_aggregation == "auto" else self.loss_aggregation

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high): the ratio is clipped to 1 - low and 1 + high. By default the loss's own (`BOUNDS`)."""
        low, high = BOUNDS[self.loss_type]
        return low if self.clip_low is None else self.clip_low, high if self.clip_high is None else self.clip_high

    @property
    def resamples(self) -> int:
        """How often a rollout may replace groups whose rewards are all equal; 0 without dynamic sampling."""
        return 0 if not self.dynamic_sampling else 3 if self.most_resamples is None else self.most_resamples


@frozen(kw_only=True)
class GrpoConfig(SurrogateConfig):
    """The options of advantages that compare a group's completions with each other."""

    num_generations: int = option(8, help="Completions drawn for each prompt.", within="[1, inf)", validator=at_least_two)
    scale_rewards: str = option(
        "auto", help="Divisor of advantages: deviation in the group, in the rollout, or none; auto: the loss's own.",
        choices=("auto", "group", "batch", "none"),
    )  # fmt: skip
    deviation: str | None = option(
        None, help="That deviation divides by n - 1 (sample, the default, TRL's) or by n (population, MiniMind 3's).",
        choices=("sample", "population"),
        validator=only_if(lambda c: c.advantage_scale != "none", "is for advantages that are divided by a deviation"),
    )  # fmt: skip
    advantage_clip: float | None = option(None, help="Largest advantage; by default there is no bound.", within="(0, inf)")
    whiten_advantages: bool = option(
        False, help="At last, subtract the mean of the rollout's advantages and divide by their deviation (MiniMind 2's)."
    )

    @property
    def advantage_scale(self) -> str:
        """`scale_rewards`, or by default the loss's own: none for dr_grpo, otherwise the group's deviation. Dr. GRPO
        (arXiv:2503.20783) shows that dividing by it favours prompts that are too easy or too hard."""
        own = "none" if self.loss_type == "dr_grpo" else "group"
        return own if self.scale_rewards == "auto" else self.scale_rewards


def needs(config: SurrogateConfig) -> Needs:
    """Prompts, an engine, the policy and, if `kl_coef` is positive, a reference."""
    return rollout_needs(config, reference=config.kl_coef > 0)


def like_grpo(
    name: str, summary: str, target: str, config: type[SurrogateConfig] = GrpoConfig, *, needs: Any = needs, **defaults: Any
) -> AlgorithmSpec:
    """The record of an algorithm with grpo's options, needs and default settings, except for those that are passed."""
    return AlgorithmSpec(
        name=name, summary=summary, target=target, config=config, needs=needs, starts_from=("sft", "reason", "lora"),
        defaults={"learning_rate": 1e-6, "global_batch_size": 8, "max_length": 512, **defaults},
    )  # fmt: skip


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "grpo"."""
    summary = "Reinforcement learning against the mean of a group of completions; also Dr. GRPO, DAPO, CISPO, GSPO."
    yield like_grpo("grpo", summary, "mm.plugins.algorithms.grpo.algorithm:Grpo")
