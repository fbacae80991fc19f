"""GRPO (DeepSeekMath, arXiv:2402.03300) and the losses derived from it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm.contracts import DrawnTokens, Metrics, Rollout, Sample, Totals, estimate_kl
from mm.plugins.algorithms.grpo import GrpoConfig, SurrogateConfig
from mm.plugins.algorithms.grpo.losses import SURROGATES
from mm.runtime.training.rollouts.advantages import (
    clip,
    deviation,
    mean_and_deviation,
    normalise,
    regroup,
    subtract_mean,
)
from mm.runtime.training.rollouts.completions import Groups, has_spread, rewards_of

if TYPE_CHECKING:
    from torch import Tensor

    from mm.contracts import Packed, Unit

EPS = 1e-4
WHITEN_EPS = 1e-8


class SurrogateRollout(Rollout):
    """Trains the policy with a clipped surrogate of the advantages and, if there is a reference, a penalty on the KL to it. A
    subclass defines the advantages."""

    config: SurrogateConfig

    def sample_groups(self, units: Sequence[Unit], attempt: int = 0) -> list[list[Sample]]:
        """As `Rollout.sample_groups`. With dynamic sampling, groups whose rewards are all equal are replaced by further prompts
        (DAPO, arXiv:2503.14476, eq. 11)."""
        groups = super().sample_groups(units, attempt)
        for more in range(self.config.resamples):
            kept = [group for group in groups if has_spread(group)]
            missing = int(self.context.world.sum({"missing": float(len(groups) - len(kept))})["missing"])
            if not missing:
                break
            groups = kept + super().sample_groups(self.context.more_rows(missing), attempt + more + 1)
        return groups

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The weighted sum over drawn tokens of the surrogate plus kl_coef times the KL; see `weights`."""
        tokens = self.drawn_tokens(batch)
        loss_M, clipped_M = SURROGATES[self.config.loss_type](tokens, *self.config.bounds)
        means = {"clip_fraction": clipped_M}
        if "reference" in self.models:
            means["kl"] = estimate_kl(self.config.kl_estimator or "k3", tokens.logprobs_M, tokens.reference_M)
            loss_M = loss_M + self.config.kl_coef * means["kl"]
        loss = (loss_M * self.weights(tokens, totals)).sum()
        return loss, {"loss": (loss.detach(), totals.share), **self.token_metrics(tokens, **means)}

    def weights(self, tokens: DrawnTokens, totals: Totals) -> Tensor:
        """The weight of each drawn token, (M,), by the loss's aggregation:

        - seq-mean-token-mean: 1 / (completions * the completion's length);
        - token-mean: 1 / all drawn tokens of the step;
        - seq-mean-token-sum-norm: 1 / (completions * --max-new-tokens).
        """
        completions = max(1.0, totals.sequences)
        if self.config.aggregation == "seq-mean-token-mean":
            return 1 / (completions * tokens.length_N.clamp(min=1))[tokens.document_M]
        constant = self.config.aggregation == "seq-mean-token-sum-norm"
        whole = completions * self.config.max_new_tokens if constant else max(1.0, totals.targets)
        return tokens.logprobs_M.new_full(tokens.logprobs_M.shape, 1 / whole)


class Grpo(SurrogateRollout):
    """Samples a group of completions for each prompt. The advantage of a completion, the same for all its tokens, is its reward
    relative to the group's mean."""

    config: GrpoConfig

    def advantages(self, groups: Groups) -> list[list[float]]:
        """(reward - mean of the group) / the deviation of the group, that of the rollout, or 1; see `advantage_scale`. Then
        clipped and whitened over the rollout, if the options say so."""
        rewards, scale, config = rewards_of(groups), self.config.advantage_scale, self.config
        freedom = 0 if config.deviation == "population" else 1
        deviations = [deviation(group, freedom) + EPS if scale == "group" else 1.0 for group in rewards]
        if scale == "batch":
            every = [reward for group in rewards for reward in group]
            deviations = [mean_and_deviation(self.context.world, every, freedom)[1] + EPS] * len(rewards)
        found = [[a / divisor for a in subtract_mean(group)] for group, divisor in zip(rewards, deviations, strict=True)]
        if (limit := config.advantage_clip) is not None:
            found = [clip(group, limit) for group in found]
        if config.whiten_advantages:
            found = regroup(normalise(self.context.world, [a for group in found for a in group], WHITEN_EPS), groups)
        return found
