"""GRPO (DeepSeekMath, arXiv:2402.03300) and the losses that grew out of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.contracts import Metrics, Totals
from mm.plugins.rollouts.base import Groups, Rollout
from mm.plugins.rollouts.losses import SURROGATES, DrawnTokens, kl
from mm.plugins.rollouts.samples import have_spread
from mm.plugins.rollouts.statistics import deviation, mean, over_ranks
from mm.runtime.nn.batch import Packed, Unit

# Dr. GRPO (arXiv:2503.20783) shows that dividing by the group's deviation favours prompts that are too easy or too hard
_UNSCALED = ("dr_grpo",)
_EPS = 1e-4


class Grpo(Rollout):
    """A completion's advantage is its reward against the mean of its group, for each of its tokens."""

    def draw(self, units: Sequence[Unit], attempt: int = 0) -> Groups:
        """With dynamic sampling, groups without spread make room for further prompts (DAPO, arXiv:2503.14476, eq. 11)."""
        groups = super().draw(units, attempt)
        if not self.config.dynamic_sampling:
            return groups
        most = self.config.most_resamples
        for more in range(3 if most is None else most):
            kept = [group for group in groups if have_spread(group)]
            missing = int(self.context.world.sum({"missing": float(len(groups) - len(kept))})["missing"])
            if not missing:
                break
            groups = kept + super().draw(self.context.more_rows(missing), attempt + more + 1)
        return groups

    def compare(self, groups: Groups) -> None:
        """(reward - mean) / deviation."""
        scale = self.config.scale_rewards
        if scale == "auto":
            scale = "none" if self.config.loss_type in _UNSCALED else "group"
        for group in groups:
            rewards = [sample.reward for sample in group]
            divisor = deviation(rewards) + _EPS if scale == "group" else 1.0
            for sample in group:
                sample.advantage = (sample.reward - mean(rewards)) / divisor
        if scale == "batch":
            spread = over_ranks(self.context.world, [s.reward for group in groups for s in group])[1]
            for sample in (s for group in groups for s in group):
                sample.advantage /= spread + _EPS

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The surrogate and the KL, both weighted alike."""
        config = self.config
        tokens = self.tokens(batch, self.models["policy"](batch, head=self.logprobs_of(batch)))
        each_M, cut_M = SURROGATES[config.loss_type](tokens, *config.bounds)
        metrics = self.measured(batch, tokens, cut_M)
        if "reference" in self.models:
            kl_M = kl(config.kl_estimator or "k3", tokens.logprobs_M, self.field(batch, "reference"))
            each_M = each_M + config.kl_coef * kl_M
            metrics["kl"] = (kl_M.detach().sum(), float(batch.num_targets))
        loss = (each_M * self.weights(tokens, totals)).sum()
        return loss, {"loss": (loss.detach(), self.share(totals)), **metrics}

    def weights(self, tokens: DrawnTokens, totals: Totals) -> Tensor:
        """What a token counts: an equal share of its completion (grpo, gspo), of all tokens (dapo, cispo), or of the
        longest completion that could have been (dr_grpo)."""
        completions = max(1.0, totals["completions"])
        if self.config.loss_type in ("grpo", "gspo"):
            return 1 / (completions * tokens.length_N.clamp(min=1))[tokens.document_M]
        whole = completions * self.config.max_new_tokens if self.config.loss_type == "dr_grpo" else max(1.0, totals["drawn"])
        return torch.full_like(tokens.logprobs_M, 1 / whole)
