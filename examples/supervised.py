"""Fine-tuning that limits what outliers teach: `mm -p examples/supervised.py train --algo steady`.

A token whose loss is far above what is usual so far weighs less. The usual loss is state: without it, a resumed run would
weigh its first tokens differently.
"""

import attrs

from mm.contracts import Algorithm, AlgorithmSpec, Needs, hookimpl, mean_loss, option


@attrs.frozen(kw_only=True)
class SteadyConfig:
    """Options of the algorithm."""

    most: float = option(2.0, help="Losses count up to this many times the usual one.", within="(0, inf)")


@hookimpl
def mm_algorithms():
    yield AlgorithmSpec(
        name="steady", summary="Fine-tuning that limits what outliers teach.", target=f"{__name__}:Steady", config=SteadyConfig,
        needs=Needs(data="chat"), defaults={"learning_rate": 1e-4}, starts_from=("pretrain",),
    )


class Steady(Algorithm):
    """The mean over the step's targets of -log p, at most `most` times the usual loss: the running mean of the steps so far."""

    state = ("usual",)
    usual, present = float("inf"), 0.0

    def loss(self, batch, totals):
        nll_M = -self.models["policy"].logprobs(batch)
        if nll_M.requires_grad:  # held-out rows, which are measured without gradients, do not count
            self.present += nll_M.detach().sum() / max(1.0, totals.targets)
        weights_M = (self.config.most * self.usual / nll_M.detach()).clamp(max=1.0)
        return mean_loss(weights_M * nll_M, totals.targets, nll=nll_M)

    def after_step(self, step):
        mean = self.context.world.sum({"mean": float(self.present)})["mean"]
        self.usual, self.present = mean if step == 1 else 0.9 * self.usual + 0.1 * mean, 0.0
