"""Pairs of answers with a hinge instead of a sigmoid: `mm -p examples/preference.py train --algo hinge`.

Once a chosen answer has gained `margin` on the rejected one, relative to the reference, a pair teaches nothing more.
"""

import attrs

from mm.contracts import AlgorithmSpec, Needs, PreferenceAlgorithm, PreferenceConfig, hookimpl, mean_loss, option


@attrs.frozen(kw_only=True)
class HingeConfig(PreferenceConfig):
    """Options of the algorithm, with --cache-reference."""

    beta: float = option(0.1, help="How strongly the reference holds the policy.", within="(0, inf)")


@hookimpl
def mm_algorithms():
    yield AlgorithmSpec(
        name="hinge",
        summary="Learning from pairs of answers until they are told apart.",
        target=f"{__name__}:Hinge",
        config=HingeConfig,
        needs=Needs(data="preference", roles=("policy", "reference")),
        defaults={"learning_rate": 1e-6, "global_batch_size": 4, "max_length": 1024},
        starts_from=("sft",),
    )


class Hinge(PreferenceAlgorithm):
    """The mean over the step's pairs of max(0, 1 - beta (c - r)), c and r the log-ratios of the answers to the reference."""

    def loss(self, batch, totals):
        chosen, rejected = self.pairs(batch)
        margin_P = self.config.beta * (chosen.ratio_P - rejected.ratio_P)
        return mean_loss((1 - margin_P).clamp(min=0), totals.units, margin=margin_P, accuracy=margin_P > 0)
