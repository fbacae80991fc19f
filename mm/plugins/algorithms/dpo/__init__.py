"""Learning from pairs of answers: DPO and related losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Attribute, frozen

from mm.contracts import AlgorithmSpec, Needs, PreferenceConfig, hookimpl, option

# each loss with its usual beta: MiniMind 3's, MiniMind 2's, and those of the papers
BETAS: Mapping[str, float] = {"sigmoid": 0.15, "sigmoid_norm": 0.1, "ipo": 0.1, "simpo": 2.0, "orpo": 0.1}
REFERENCE_FREE = ("simpo", "orpo")
_SMOOTHED = ("sigmoid", "sigmoid_norm", "simpo")


def _smoothed(config: DpoConfig, attribute: Attribute[Any], value: float) -> None:
    if value and config.loss_type not in _SMOOTHED:
        raise ValueError(f"'label_smoothing' is for --loss-type {', '.join(_SMOOTHED)}; {config.loss_type} has none")


def _simpo_only(config: DpoConfig, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and config.loss_type != "simpo":
        raise ValueError(f"'gamma' is for --loss-type simpo; {config.loss_type} has none")


def _has_reference(config: DpoConfig, attribute: Attribute[Any], value: bool) -> None:
    if value and config.loss_type in REFERENCE_FREE:
        raise ValueError(f"'cache_reference': --loss-type {config.loss_type} has no reference")


@frozen(kw_only=True)
class DpoConfig(PreferenceConfig):
    """The loss of a pair, its strength beta, and the settings that only some losses have."""

    loss_type: str = option(
        "sigmoid",
        help="sigmoid is DPO; sigmoid_norm averages over tokens (MiniMind 2's); simpo and orpo need no reference.",
        choices=tuple(BETAS),
    )
    beta: float | None = option(
        None, help=f"Strength; by default {', '.join(f'{beta} for {loss}' for loss, beta in BETAS.items())}.",
        within="(0, inf)",
    )  # fmt: skip
    label_smoothing: float = option(
        0.0, help="Share of pairs that are assumed to be labelled the wrong way round.", within="[0, 0.5)", validator=_smoothed
    )
    gamma: float | None = option(
        None, help="simpo: the target margin; by default 1.", within="(-inf, inf)", validator=_simpo_only
    )
    cache_reference: bool = option(
        False, help="Compute the reference once for all rows and keep it in the workspace's cache.", validator=_has_reference
    )

    @property
    def strength(self) -> float:
        """`beta`, or by default the loss's own (`BETAS`)."""
        return self.beta or BETAS[self.loss_type]


def needs(config: DpoConfig) -> Needs:
    """Preference data, the policy and, if the loss has one, a reference."""
    return Needs(data="preference", roles=("policy",) if config.loss_type in REFERENCE_FREE else ("policy", "reference"))


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "dpo", with MiniMind's settings."""
    yield AlgorithmSpec(
        name="dpo",
        summary="Learning from pairs of answers: DPO, its length-normalised form, IPO, SimPO, ORPO.",
        target="mm.plugins.algorithms.dpo.algorithm:Dpo",
        config=DpoConfig,
        needs=needs,
        defaults={"learning_rate": 4e-8, "global_batch_size": 4, "max_length": 1024},
        starts_from=("sft",),
    )
