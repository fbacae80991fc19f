"""Single-stream policy optimization (SPO): its options and record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Attribute, frozen

from mm.contracts import AlgorithmSpec, hookimpl, kl_coefficient, option
from mm.plugins.algorithms.grpo import SurrogateConfig, like_grpo, surrogate
from mm.runtime.training.rollouts.options import only_if

# the smallest share of its counts that each tracker keeps at an update: the paper's (a window of 8 outcomes), and MiniMind's
RHO_LOW: Mapping[str, float] = {"prompt": 0.875, "global": 0.5}
_BY_DEFAULT = "by default " + ", ".join(f"{share:g} for {tracker}" for tracker, share in RHO_LOW.items())


def _one_per_prompt(config: SpoConfig, attribute: Attribute[Any], value: bool) -> None:
    if not value and config.value_tracker == "global":
        raise ValueError("'prioritised': with --value-tracker global all prompts have the same priority anyway")


@frozen(kw_only=True)
class SpoConfig(SurrogateConfig):
    """The options of the value tracker, and of the choice of the next prompts."""

    num_generations: int = option(1, help="Completions drawn for each prompt.", within="[1, inf)")
    loss_type: str = surrogate("dapo")
    kl_coef: float = kl_coefficient(0.02)
    value_tracker: str = option(
        "prompt", help="One value for each prompt (the paper's), or one for all of them (MiniMind's).",
        choices=tuple(RHO_LOW),
    )  # fmt: skip
    reward_low: float = option(
        0.0, help="Reward that counts as failure; the tracker estimates the share of success.", within="(-inf, inf)"
    )
    reward_high: float = option(1.0, help="Reward that counts as success.", within="(-inf, inf)")
    kl_half_life: float = option(0.06, help="KL after which half of a prompt's counts is forgotten.", within="(0, inf)")
    rho_low: float | None = option(
        None, help=f"Smallest share of the counts kept at an update; {_BY_DEFAULT}.", within="(0, 1)"
    )
    rho_high: float = option(0.96, help="Largest share that is kept.", within="(0, 1]")
    advantage_clip: float | None = option(5.0, help="Largest advantage.", within="(0, inf)")
    normalise: bool = option(True, help="Normalise advantages over the rollout (the paper's; MiniMind does not).")
    prioritised: bool = option(
        True, help="Draw prompts with uncertain outcomes more often, if each prompt has its own value.",
        validator=_one_per_prompt,
    )  # fmt: skip
    explore: float | None = option(
        None, help="Constant that is added to the uncertainty of every prompt; by default 0.05.",
        within="[0, inf)", validator=only_if(lambda c: c.by_uncertainty, "is for prompts that are drawn by uncertainty"),
    )  # fmt: skip

    def __attrs_post_init__(self) -> None:
        if self.reward_low >= self.reward_high:
            raise ValueError(f"'reward_low' {self.reward_low:g} must be below --reward-high {self.reward_high:g}")
        if self.least_kept > self.rho_high:
            raise ValueError(f"'rho_high' {self.rho_high:g} is below the least share, --rho-low {self.least_kept:g}")

    @property
    def least_kept(self) -> float:
        """`rho_low`, or by default the tracker's own (`RHO_LOW`)."""
        return RHO_LOW[self.value_tracker] if self.rho_low is None else self.rho_low

    @property
    def by_uncertainty(self) -> bool:
        """True if prompts are drawn by the uncertainty of their outcome."""
        return self.value_tracker == "prompt" and self.prioritised


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "spo"."""
    summary = "Reinforcement learning with one completion per prompt, against the rewards of its earlier ones."
    yield like_grpo("spo", summary, "mm.plugins.algorithms.spo.algorithm:Spo", SpoConfig, global_batch_size=64)
