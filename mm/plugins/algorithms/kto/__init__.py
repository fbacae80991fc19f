"""Learning from single answers that are labelled good or bad."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen
from attrs.validators import ge, gt

from mm.contracts import AlgorithmSpec, Needs, PreferenceConfig, hookimpl, option


@frozen(kw_only=True)
class KtoConfig(PreferenceConfig):
    """KTO's settings (arXiv:2402.01306). If one label is more frequent, choose the weights so that weight * count is about equal
    for both."""

    beta: float = option(0.1, help="How strongly the reference holds the policy.", validator=gt(0.0))
    desirable_weight: float = option(1.0, help="Weight of good answers.", validator=ge(0.0))
    undesirable_weight: float = option(1.0, help="Weight of bad answers.", validator=ge(0.0))


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "kto". MiniMind has no such stage: learning rate and batch size are those of TRL and of the paper."""
    yield AlgorithmSpec(
        name="kto",
        summary="Learning from answers that are labelled good or bad, without pairs.",
        target="mm.plugins.algorithms.kto.algorithm:Kto",
        config=KtoConfig,
        needs=Needs(data="unpaired", roles=("policy", "reference")),
        defaults={"learning_rate": 1e-6, "global_batch_size": 32, "max_length": 1024},
        starts_from=("sft",),
    )
