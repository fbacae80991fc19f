"""The advantages of every algorithm with rollouts, against formulas in float64 written out apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mm.contracts import Completion
from mm.plugins.algorithms.grpo import GrpoConfig, SurrogateConfig
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.algorithms.ppo import PpoConfig
from mm.plugins.algorithms.ppo.algorithm import Ppo
from mm.plugins.algorithms.reinforce_pp.algorithm import ReinforcePlusPlus
from mm.plugins.algorithms.rloo import RlooConfig
from mm.plugins.algorithms.rloo.algorithm import Rloo
from mm.plugins.algorithms.spo import SpoConfig
from mm.plugins.algorithms.spo.algorithm import Spo
from mm.plugins.algorithms.spo.tracker import Prioritised, ValueTracker
from mm.runtime.generation.scoring import CompletionScore
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.training.distributed import World
from mm.runtime.training.roles import Role
from mm.runtime.training.rollouts.completions import Sample
from mm.runtime.training.rollouts.experience import Experience

REWARDS = [[0.5, 2.0, -1.0, 0.25], [1.0, 1.0, 1.0, 0.0], [3.0, 3.0, 3.0, 3.0]]
TINY = 1e-4  # what is added to a deviation, as in TRL


class Bigram(Role):
    """A role that reads one token: its logits are those of a row of a table, or its values the rows themselves."""

    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=None))

    def __init__(self, seed: int, width: int = 11) -> None:
        self.table = torch.randn(11, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def train(self, mode: bool) -> None: ...

    def __call__(self, batch: Packed, head: Any) -> Tensor:
        width = self.table.shape[1]
        hidden = self.table[batch.input_ids].float()
        return head(hidden, torch.eye(width))  # type: ignore[no-any-return]

    def of(self, ids: Sequence[int]) -> list[float]:
        """The log-probability of every token after the first."""
        rows = (self.table[before].tolist() for before in ids[:-1])
        return [row[token] - math.log(sum(map(math.exp, row))) for row, token in zip(rows, ids[1:], strict=True)]


def tools() -> Any:
    packs = lambda units: [pack([unit]) for unit in units]  # noqa: E731
    return SimpleNamespace(rewards={"some": None}, world=World(), seed=0, max_length=None, packs=packs)


def drawn(row: int, ids: Sequence[int], reward: float, logprobs: Sequence[float] = (), number: int = 0) -> Sample:
    """A completion of a prompt of two tokens."""
    sample = Sample.of(Unit((Tokens(torch.tensor([1, 2])),), row_index=row), None, (row, number))  # type: ignore[arg-type]
    given = tuple(logprobs) or (-1.0,) * len(ids)
    sample.extend(Completion(ids=tuple(ids), logprobs=given, finish_reason="stop"), "")
    sample.score = CompletionScore(total=reward)
    return sample


def compared(algorithm: Any) -> list[list[float]]:
    """The advantages of three groups of four."""
    groups = [[drawn(row, [3], reward, number=n) for n, reward in enumerate(group)] for row, group in enumerate(REWARDS)]
    found: list[list[float]] = algorithm.advantages(groups)
    return found


def fields(experience: Experience) -> dict[str, list[float]]:
    """The values of its tokens, as the update's unit has them."""
    (sequence,) = experience.as_unit().sequences
    return {name: values.tolist() for name, values in sequence.fields.items()}


# ---- against a group, or the rollout


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("scale", ["auto", "group", "batch", "none"])
def test_grpo_compares_with_the_group(scale: str, loss_type: str) -> None:
    found = compared(Grpo(GrpoConfig(scale_rewards=scale, loss_type=loss_type), {}, tools()))
    whole = statistics.stdev([reward for group in REWARDS for reward in group]) + TINY
    unscaled = scale == "none" or (scale == "auto" and loss_type == "dr_grpo")
    for group, advantages in zip(REWARDS, found, strict=True):
        divisor = 1.0 if unscaled else whole if scale == "batch" else statistics.stdev(group) + TINY
        assert advantages == pytest.approx([(r - statistics.fmean(group)) / divisor for r in group], abs=1e-12)


def test_minimind_3_divides_by_the_deviation_of_the_population() -> None:
    found = compared(Grpo(GrpoConfig(deviation="population"), {}, tools()))
    for group, advantages in zip(REWARDS, found, strict=True):
        divisor = statistics.pstdev(group) + TINY
        assert advantages == pytest.approx([(r - statistics.fmean(group)) / divisor for r in group], abs=1e-12)
    whole = statistics.pstdev([reward for group in REWARDS for reward in group]) + TINY
    batch = compared(Grpo(GrpoConfig(deviation="population", scale_rewards="batch"), {}, tools()))
    assert batch[0][0] == pytest.approx((0.5 - 0.4375) / whole)


@pytest.mark.parametrize("limit", [10.0, 1.0])
def test_minimind_2_whitens_what_it_has_clipped(limit: float) -> None:
    """`train_grpo.py` of MiniMind 2 (with its bound of 10, and with one that cuts), in float64."""
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    scaled = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    clipped = scaled.clamp(-limit, limit)
    assert bool((clipped != scaled).any()) == (limit == 1.0)
    wanted = (clipped - clipped.mean()) / (clipped.std() + 1e-8)
    found = compared(Grpo(GrpoConfig(advantage_clip=limit, whiten_advantages=True), {}, tools()))
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted, atol=1e-12, rtol=1e-12)


def test_rloo_compares_with_the_others() -> None:
    for group, advantages in zip(REWARDS, compared(Rloo(RlooConfig(), {}, tools())), strict=True):
        others = [statistics.fmean(group[:n] + group[n + 1 :]) for n in range(len(group))]
        assert advantages == pytest.approx([r - other for r, other in zip(group, others, strict=True)], abs=1e-12)


def test_reinforce_pp_compares_with_the_rollout() -> None:
    every = [reward for group in REWARDS for reward in group]
    wanted = [(r - statistics.fmean(every)) / (statistics.stdev(every) + TINY) for r in every]
    found = compared(ReinforcePlusPlus(SurrogateConfig(), {}, tools()))
    assert [a for advantages in found for a in advantages] == pytest.approx(wanted, abs=1e-12)


# ---- against a critic


def test_ppo_whitens_the_advantages_of_all_tokens() -> None:
    """GAE (arXiv:1506.02438) of the reward at the end minus the KL at each token, then mean 0 and deviation 1."""
    policy, reference, critic = Bigram(0), Bigram(1), Bigram(2, width=1)
    config = PpoConfig(kl_coef=0.1, gamma=0.9, gae_lambda=0.8)
    samples = [drawn(0, [3, 4, 5], 2.0), drawn(1, [6], -1.0), drawn(2, [7, 3, 3, 8], 0.5)]
    ppo = Ppo(config, {"policy": policy, "reference": reference, "critic": critic}, tools())
    experience = ppo.make_experience([[sample] for sample in samples])
    raw: list[list[float]] = []
    for sample, one in zip(samples, experience, strict=True):
        gaps = [p - q for p, q in zip(policy.of(sample.ids)[1:], reference.of(sample.ids)[1:], strict=True)]
        rewards = [-0.1 * gap for gap in gaps]
        rewards[-1] += sample.reward
        values = [critic.table[token].item() for token in sample.ids[1:-1]]
        errors = [r + 0.9 * w - v for r, v, w in zip(rewards, values, [*values[1:], 0.0], strict=True)]
        raw.append([sum(0.72**k * e for k, e in enumerate(errors[i:])) for i in range(len(errors))])
        returns = [a + v for a, v in zip(raw[-1], values, strict=True)]
        assert fields(one)["returns"][2:] == pytest.approx(returns, abs=1e-5)
        assert fields(one)["kl"] == pytest.approx([0.0, 0.0, *gaps], abs=1e-5)
    every = [advantage for advantages in raw for advantage in advantages]
    middle, spread = statistics.fmean(every), statistics.stdev(every)
    for one, advantages in zip(experience, raw, strict=True):
        whitened = fields(one)["advantages"]
        assert whitened == pytest.approx([0.0, 0.0, *((a - middle) / spread for a in advantages)], abs=1e-5)
        assert one.advantage == pytest.approx(statistics.fmean(advantages), abs=1e-5)


# ---- against what earlier completions of a prompt earned


def moved(policy: Bigram, sample: Sample) -> float:
    """The mean of r - 1 - log r over a completion's tokens, r the policy's probability over that at which it was drawn."""
    logs = [now - then for now, then in zip(policy.of(sample.ids)[1:], sample.logprobs[2:], strict=True)]
    return statistics.fmean(math.exp(log) - 1 - log for log in logs)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_spo_compares_with_what_it_knows_of_the_prompt(normalise: bool, clip: float | None) -> None:
    """arXiv:2509.13232: v = alpha / (alpha + beta); rho = 2 ** (-KL / half_life) of both is kept at an update."""
    config = SpoConfig(
        normalise=normalise, advantage_clip=clip, kl_half_life=0.5, rho_low=0.5, rho_high=0.9, reward_low=-1.0, reward_high=3.0
    )
    policy = Bigram(0)
    spo = Spo(config, {"policy": policy}, tools())
    known = {row: (1.0, 1.0) for row in range(4)}  # 0.5 / (1 - rho_low) each
    last: dict[int, Sample] = {}
    rhos = set()
    for step, rewards in enumerate([(3.0, -1.0, 1.0), (0.0, 3.0, 2.5), (5.0, -1.0, 1.0)]):
        policy.table = policy.table + 0.2 * step * Bigram(9 + step).table
        said = [(row, [3 + row, 4 + step, 5]) for row in range(step, step + 3)]  # prompts may be new, and come again
        samples = [
            drawn(row % 4, ids, reward, policy.of([2, *ids])) for (row, ids), reward in zip(said, rewards, strict=True)
        ]
        found = [advantage for (advantage,) in spo.advantages([[sample] for sample in samples])]
        success = {s.unit.row_index: min(1.0, (s.reward + 1) / 4) for s in samples}
        wanted = [success[s.unit.row_index] - known[s.unit.row_index][0] / sum(known[s.unit.row_index]) for s in samples]
        if normalise:
            wanted = [(a - statistics.fmean(wanted)) / (statistics.stdev(wanted) + TINY) for a in wanted]
        if clip:
            wanted = [min(clip, max(-clip, a)) for a in wanted]
        assert found == pytest.approx(wanted, abs=1e-5)
        for row, given in success.items():
            gap = moved(policy, last[row]) if row in last else 0.0
            rho = min(0.9, max(0.5, 2 ** (-gap / 0.5)))
            rhos.add(rho)
            known[row] = (rho * known[row][0] + given, rho * known[row][1] + 1 - given)
        last |= {s.unit.row_index: s for s in samples}
        for row, (alpha, beta) in known.items():
            assert (spo.tracker.look_up(row).alpha, spo.tracker.look_up(row).beta) == pytest.approx((alpha, beta), abs=1e-5)
    other = ValueTracker(half_life=0.5, rho_low=0.5, rho_high=0.9)
    other.load_state_dict(spo.tracker.state_dict())
    for tracker in (spo.tracker, other):  # compact, for there may be many prompts
        for row, sample in last.items():
            kept = tracker.look_up(row)
            assert (kept.ids.tolist(), kept.learn.tolist()) == (sample.ids, sample.learn)
            assert kept.logprobs.tolist() == pytest.approx(sample.logprobs)
            assert kept.ids.nbytes + kept.learn.nbytes + kept.logprobs.nbytes == 9 * len(sample.ids)
    assert {row: other.look_up(row).value for row in known} == {row: spo.tracker.look_up(row).value for row in known}
    assert any(0.5 < rho < 0.9 for rho in rhos) and len(rhos) > 2


def test_prompts_come_by_the_deviation_of_their_outcome() -> None:
    """The first of a batch is a prompt with the share of its weight, sqrt(v (1 - v)) + explore."""
    tracker = ValueTracker(half_life=0.06, rho_low=0.5, rho_high=0.96)
    for row, outcomes in enumerate([(), (1.0,), (1.0,) * 4, (0.0,) * 20]):
        for success in outcomes:
            tracker.update(row, success, 0.0, {})
    order, counts = Prioritised(range(4), tracker, 0.02, seed=3), [0] * 4
    for _ in range(4000):
        counts[order.take(1)[0]] += 1
    values = [tracker.look_up(row).value for row in range(4)]
    assert values[0] == 0.5 and values[2] > 0.75 and values[3] < 0.1
    weights = [math.sqrt(v * (1 - v)) + 0.02 for v in values]
    for count, weight in zip(counts, weights, strict=True):
        share = weight / sum(weights)
        assert count / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
