"""Learning from single answers that are labelled good or bad."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from mm.contracts import AlgorithmSpec, Needs, PreferenceConfig, hookimpl, option


@frozen(kw_only=True)
class KtoConfig(PreferenceConfig):
    """KTO's settings (arXiv:2402.01306). If one label is more frequent, choose the weights so that weight * count is about equal
    for both."""

    beta: float = option(0.1, help="How strongly the reference holds the policy.", within="(0, inf)")
    desirable_weight: float = option(1.0, help="Weight of good answers.", within="[0, inf)")
    undesirable_weight: float = option(1.0, help="Weight of bad answers.", within="[0, inf)")


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
