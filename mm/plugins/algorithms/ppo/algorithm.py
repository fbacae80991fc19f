"""PPO (arXiv:1707.06347) for language models (arXiv:1909.08593, arXiv:2203.02155)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mm.contracts import Metrics, Totals
from mm.plugins.rollouts.base import Groups, Rollout
from mm.plugins.rollouts.losses import clipped
from mm.plugins.rollouts.samples import Sample
from mm.plugins.rollouts.statistics import over_ranks
from mm.runtime.nn.batch import Packed


class Ppo(Rollout):
    """A critic values the state before every token; advantages are generalised (GAE) and normalised over the rollout.

    The KL to the reference is taken from the reward at every token, with a fixed or an adaptive weight (arXiv:1909.08593,
    eq. 2 and section 2.2). When the policy has moved further than `kl_stop` the rest of a rollout is dropped: a number is
    then read from the device after every step.
    """

    def __init__(self, config: Any, models: Any, context: Any) -> None:
        super().__init__(config, models, context)
        self.kl_coef = config.kl_coef
        self._moved: Tensor | None = None
        self._drawn = 0.0

    def compare(self, groups: Groups) -> None:
        """Nothing: the advantages need values, see `remember`."""

    def remember(self, samples: Sequence[Sample]) -> None:
        """Old log-probabilities, values, returns and advantages of every drawn token."""
        old = self.logprobs("policy", samples)
        reference = self.logprobs("reference", samples) if "reference" in self.models else old
        values = self.per_token("critic", samples, self.value_of)
        gaps = [o - r for o, r in zip(old, reference, strict=True)]
        self._adapt(gaps)
        advantages = [self.generalised(self.rewards(s, g), v) for s, g, v in zip(samples, gaps, values, strict=True)]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        middle, spread = over_ranks(self.context.world, torch.cat(advantages).tolist() if advantages else [])
        whitened = [(a - middle) / (spread + 1e-8) for a in advantages]
        fields = {"old": old, "kl": gaps, "values": values, "returns": returns, "advantages": whitened}
        for name, field in fields.items():
            self.add_field(samples, name, field)
        for sample, advantage in zip(samples, advantages, strict=True):
            sample.advantage = float(advantage.mean()) if len(advantage) else 0.0

    def rewards(self, sample: Sample, kl_L: Tensor) -> Tensor:
        """The reward of each drawn token: minus its KL, and what the completion earned at the last."""
        rewards_L: Tensor = -self.kl_coef * kl_L
        if len(rewards_L):
            rewards_L[-1] += sample.reward
        return rewards_L

    def generalised(self, rewards_L: Tensor, values_L: Tensor) -> Tensor:
        """Advantages by GAE (arXiv:1506.02438, eq. 16); nothing comes after the last token."""
        gamma, discount = self.config.gamma, self.config.gamma * self.config.gae_lambda
        after_L = torch.cat((values_L[1:], values_L.new_zeros(1)))[: len(values_L)]
        deltas, running, found = (rewards_L + gamma * after_L - values_L).tolist(), 0.0, list[float]()
        for delta in reversed(deltas):
            running = delta + discount * running
            found.append(running)
        return torch.tensor(found[::-1])

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The clipped surrogate and the critic's clipped error, each a mean over all drawn tokens of the step."""
        config, drawn = self.config, max(1.0, totals["drawn"])
        tokens = self.tokens(batch, self.models["policy"](batch, head=self.logprobs_of(batch)))
        each_M, cut_M = clipped(tokens, config.clip_low, config.clip_high)
        policy = each_M.sum() / drawn
        value = self.value_loss(batch, self.models["critic"](batch, head=self.value_of(batch))) / drawn
        log_M = tokens.logprobs_M.detach() - tokens.old_M
        self._remember_move((log_M.exp() - log_M - 1).sum(), totals["drawn"])
        count, share = float(batch.num_targets), self.share(totals)
        metrics: Metrics = {
            **self.measured(batch, tokens, cut_M), "policy_loss": (policy.detach(), share), "value_loss": (value.detach(), share),
            "value": (self.field(batch, "values").sum(), count), "return": (self.field(batch, "returns").sum(), count),
        }  # fmt: skip
        if "reference" in self.models:
            metrics["kl"] = (self.field(batch, "kl").sum(), count)
            metrics["kl_coef"] = (torch.tensor(self.kl_coef * share), share)
        return policy + config.value_coef * value, metrics

    def value_of(self, batch: Packed) -> Callable[[Tensor, Tensor], Tensor]:
        """The head that gives the value of the state before each drawn token."""
        return lambda hidden, weight: (hidden.index_select(0, batch.target_index) @ weight.t()).squeeze(1).float()

    def value_loss(self, batch: Packed, values_M: Tensor) -> Tensor:
        """Half the squared error, or what it is at the edge of the clip where that is worse: a sum."""
        old_M, returns_M = self.field(batch, "values"), self.field(batch, "returns")
        near_M = old_M + (values_M - old_M).clamp(-self.config.value_clip, self.config.value_clip)
        return 0.5 * torch.maximum((values_M - returns_M).square(), (near_M - returns_M).square()).sum()

    def after_step(self, step: int) -> bool:
        """Whether the policy has moved too far from where it drew, over all ranks."""
        moved, self._moved = self._moved, None
        if self.config.kl_stop is None or moved is None:
            return False
        total = self.context.world.sum({"moved": float(moved)})["moved"]
        return bool(total / max(1.0, self._drawn) > self.config.kl_stop)

    def state_dict(self) -> dict[str, Any]:
        """With the present weight of the KL."""
        return {**super().state_dict(), "kl_coef": self.kl_coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.kl_coef = state["kl_coef"]

    def _remember_move(self, moved: Tensor, drawn: float) -> None:
        self._moved = moved if self._moved is None else self._moved + moved
        self._drawn = drawn

    def _adapt(self, gaps: Sequence[Tensor]) -> None:
        """Raise or lower the KL's weight by up to 2% a rollout (arXiv:1909.08593, section 2.2), where the KL is the mean over
        all drawn tokens, as the metric is."""
        if self.config.kl_target is None:
            return
        found = self.context.world.sum({"kl": sum(float(gap.sum()) for gap in gaps), "tokens": float(sum(map(len, gaps)))})
        error = found["kl"] / max(1.0, found["tokens"]) / self.config.kl_target - 1
        self.kl_coef *= 1 + 0.1 * max(-0.2, min(0.2, error))
