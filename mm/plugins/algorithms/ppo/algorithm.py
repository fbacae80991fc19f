"""PPO (arXiv:1707.06347) for language models (arXiv:1909.08593, arXiv:2203.02155)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.contracts import Experience, Metrics, Packed, Rollout, Sample, TokenValues, Totals, clipped_surrogate, estimate_kl
from mm.plugins.algorithms.ppo import PpoConfig
from mm.runtime.training.rollouts.advantages import mean_and_deviation
from mm.runtime.training.rollouts.completions import Groups, flatten
from mm.runtime.training.rollouts.experience import compute_per_token


@attrs.frozen(kw_only=True, eq=False)
class PpoValues(TokenValues):
    """As `TokenValues`, with the KL to the reference, the critic's value and its target (the return) at each drawn token."""

    kl: Tensor
    values: Tensor
    returns: Tensor


class Ppo(Rollout):
    """A critic estimates the value of the state before every token. Advantages are computed by generalised advantage estimation
    (GAE) and normalised over the rollout.

    The KL to the reference is subtracted from the reward at every token, with a fixed or an adaptive weight (arXiv:1909.08593,
    eq. 2 and section 2.2), or its estimate k3 is a term of the loss (`kl_in`). Once the KL to the policy that drew the rollout
    exceeds `kl_stop`, the rest of the rollout is dropped; checking this reads a number from the device after every step.
    """

    config: PpoConfig
    state = ("kl_coef",)

    def __init__(self, config: PpoConfig, models: Any, context: Any) -> None:
        super().__init__(config, models, context)
        self.kl_coef = config.kl_coef
        self._moved: Tensor | None = None
        self._drawn = 0.0

    def make_experience(self, groups: Groups) -> list[Experience]:
        """Old log-probabilities, KL, values, returns and advantages of every drawn token."""
        samples, critic = flatten(groups), self.models["critic"]
        old = self.logprobs("policy", samples)
        reference = self.logprobs("reference", samples) if "reference" in self.models else old
        values = compute_per_token(critic, samples, self.context, critic.values)
        kls = [o - r for o, r in zip(old, reference, strict=True)]
        self.adapt_kl_coef(kls)
        advantages = [
            self.generalised_advantages(self.token_rewards(sample, kl_L), values_L)
            for sample, kl_L, values_L in zip(samples, kls, values, strict=True)
        ]
        middle, spread = mean_and_deviation(self.context.world, torch.cat(advantages).tolist() if advantages else [])
        tokens = [
            PpoValues(
                advantages=(a - middle) / (spread + 1e-8), engine=torch.tensor(sample.drawn_logprobs), old=o, kl=kl, values=v,
                returns=a + v, reference=r if self.config.kl_in_loss else None,
            )
            for sample, a, o, r, kl, v in zip(samples, advantages, old, reference, kls, values, strict=True)
        ]  # fmt: skip
        means = [float(advantage.mean()) if len(advantage) else 0.0 for advantage in advantages]
        return [
            Experience(sample=sample, advantage=mean, tokens=known)
            for sample, mean, known in zip(samples, means, tokens, strict=True)
        ]

    def token_rewards(self, sample: Sample, kl_L: Tensor) -> Tensor:
        """The reward of each drawn token, (L,): -kl_coef * its KL, or 0 if the KL is in the loss; the last one also gets the
        completion's reward."""
        rewards_L: Tensor = kl_L * (0.0 if self.config.kl_in_loss else -self.kl_coef)
        if len(rewards_L):
            rewards_L[-1] += sample.reward
        return rewards_L

    def generalised_advantages(self, rewards_L: Tensor, values_L: Tensor) -> Tensor:
        """The advantage of each drawn token, (L,), by GAE (arXiv:1506.02438, eq. 16). The value after the last token is 0."""
        gamma, discount = self.config.gamma, self.config.gamma * self.config.gae_lambda
        after_L = torch.cat((values_L[1:], values_L.new_zeros(1)))[: len(values_L)]
        deltas, running, found = (rewards_L + gamma * after_L - values_L).tolist(), 0.0, list[float]()
        for delta in reversed(deltas):
            running = delta + discount * running
            found.append(running)
        return torch.tensor(found[::-1])

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The clipped surrogate plus value_coef times the critic's clipped error and, if the KL is in the loss, kl_coef times its
        estimate, each a mean over all drawn tokens of the step."""
        config, drawn = self.config, max(1.0, totals.targets)
        known = PpoValues.of_pack(batch)
        tokens = self.drawn_tokens(batch, known)
        surrogate_M, clipped_M = clipped_surrogate(tokens, config.clip_low, config.clip_high)
        policy = surrogate_M.sum() / drawn
        value = self.value_loss(self.models["critic"].values(batch), known) / drawn
        # k2 is even, and k3 of old - new is its value where the new policy is the reference of the old one
        moved_M = estimate_kl(config.kl_stop_estimator or "k3", tokens.old_M, tokens.logprobs_M.detach())
        self._remember_move(moved_M.sum(), totals.targets)
        share, means = totals.share, {"clip_fraction": clipped_M, "value": known.values, "return": known.returns}
        metrics: Metrics = {"policy_loss": (policy.detach(), share), "value_loss": (value.detach(), share)}
        if "reference" in self.models:
            means["kl"] = estimate_kl("k3", tokens.logprobs_M, tokens.reference_M) if config.kl_in_loss else known.kl
            metrics["kl_coef"] = (torch.tensor(self.kl_coef * share), share)
            if config.kl_in_loss:
                policy = policy + self.kl_coef * means["kl"].sum() / drawn
        return policy + config.value_coef * value, {**metrics, **self.token_metrics(tokens, **means)}

    def value_loss(self, values_M: Tensor, known: PpoValues) -> Tensor:
        """The sum of half the squared errors, each the larger of the value's and of the value clipped to within `value_clip` of
        the old one."""
        near_M = known.values + (values_M - known.values).clamp(-self.config.value_clip, self.config.value_clip)
        return 0.5 * torch.maximum((values_M - known.returns).square(), (near_M - known.returns).square()).sum()

    def after_step(self, step: int) -> bool:
        """True if the mean KL to the policy that drew the rollout, over all ranks, exceeds `kl_stop`."""
        moved, self._moved = self._moved, None
        if self.config.kl_stop is None or moved is None:
            return False
        total = self.context.world.sum({"moved": float(moved)})["moved"]
        return bool(total / max(1.0, self._drawn) > self.config.kl_stop)

    def adapt_kl_coef(self, kls: Sequence[Tensor]) -> None:
        """Raise or lower the KL's weight by up to 2% per rollout (arXiv:1909.08593, section 2.2). The KL is the mean over all
        drawn tokens, like the metric."""
        if self.config.kl_target is None:
            return
        sums = self.context.world.sum({"kl": sum(float(kl.sum()) for kl in kls), "tokens": float(sum(map(len, kls)))})
        error = sums["kl"] / max(1.0, sums["tokens"]) / self.config.kl_target - 1
        self.kl_coef *= 1 + 0.1 * max(-0.2, min(0.2, error))

    def _remember_move(self, moved: Tensor, drawn: float) -> None:
        self._moved = moved if self._moved is None else self._moved + moved
        self._drawn = drawn
