"""GRPO (DeepSeekMath, arXiv:2402.03300) and the losses that grew out of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm.contracts import DrawnTokens, Metrics, Rollout, Sample, Totals, estimate_kl
from mm.plugins.algorithms.grpo import GrpoConfig, SurrogateConfig
from mm.plugins.algorithms.grpo.losses import SURROGATES
from mm.runtime.training.rollouts.advantages import deviation, mean_and_deviation, subtract_mean
from mm.runtime.training.rollouts.completions import Groups, has_spread, rewards_of

if TYPE_CHECKING:
    from torch import Tensor

    from mm.contracts import Packed, Unit

EPS = 1e-4


class SurrogateRollout(Rollout):
    """The policy follows a surrogate of its advantages, with a penalty on the KL to the reference."""

    config: SurrogateConfig

    def sample_groups(self, units: Sequence[Unit], attempt: int = 0) -> list[list[Sample]]:
        """With dynamic sampling, groups without spread are replaced by further prompts (DAPO, arXiv:2503.14476, eq. 11)."""
        groups = super().sample_groups(units, attempt)
        for more in range(self.config.resamples):
            kept = [group for group in groups if has_spread(group)]
            missing = int(self.context.world.sum({"missing": float(len(groups) - len(kept))})["missing"])
            if not missing:
                break
            groups = kept + super().sample_groups(self.context.more_rows(missing), attempt + more + 1)
        return groups

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The surrogate plus kl_coef times the KL, at each token with the token's weight."""
        tokens = self.drawn_tokens(batch)
        loss_M, clipped_M = SURROGATES[self.config.loss_type](tokens, *self.config.bounds)
        means = {"clip_fraction": clipped_M}
        if "reference" in self.models:
            means["kl"] = estimate_kl(self.config.kl_estimator or "k3", tokens.logprobs_M, tokens.reference_M)
            loss_M = loss_M + self.config.kl_coef * means["kl"]
        loss = (loss_M * self.weights(tokens, totals)).sum()
        return loss, {"loss": (loss.detach(), totals.share), **self.token_metrics(tokens, **means)}

    def weights(self, tokens: DrawnTokens, totals: Totals) -> Tensor:
        """The weight of each token, M: an equal share of its completion (grpo, gspo), of all tokens (dapo, cispo), or of the
        longest completion that could have been (dr_grpo)."""
        completions = max(1.0, totals.sequences)
        if self.config.loss_type in ("grpo", "gspo"):
            return 1 / (completions * tokens.length_N.clamp(min=1))[tokens.document_M]
        whole = completions * self.config.max_new_tokens if self.config.loss_type == "dr_grpo" else max(1.0, totals.targets)
        return tokens.logprobs_M.new_full(tokens.logprobs_M.shape, 1 / whole)


class Grpo(SurrogateRollout):
    """A group of completions is sampled for each prompt; the advantage of each, for all of its tokens, is its reward relative to
    the group's."""

    config: GrpoConfig

    def advantages(self, groups: Groups) -> list[list[float]]:
        """(reward - mean of the group) / deviation of the group, or of the rollout, or 1."""
        rewards, scale = rewards_of(groups), self.config.advantage_scale
        deviations = [deviation(group) + EPS if scale == "group" else 1.0 for group in rewards]
        if scale == "batch":
            whole = mean_and_deviation(self.context.world, [reward for group in rewards for reward in group])[1] + EPS
            deviations = [whole] * len(rewards)
        return [[a / divisor for a in subtract_mean(group)] for group, divisor in zip(rewards, deviations, strict=True)]
