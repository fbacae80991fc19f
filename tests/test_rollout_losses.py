"""The losses of reinforcement against formulas in float64, written out one completion at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.core.training.batch import Tokens, Unit, pack
from mm.plugins.algorithms.grpo import GrpoConfig
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.algorithms.ppo import PpoConfig
from mm.plugins.algorithms.ppo.algorithm import Ppo
from mm.plugins.algorithms.spo.tracker import Prioritised, ValueTracker

LENGTHS = (3, 1, 5)


def drawn(seed: int) -> tuple[list[Tensor], list[Tensor], list[float], list[Tensor]]:
    """New and old log-probabilities, advantages, reference log-probabilities of three completions."""
    generator = torch.Generator().manual_seed(seed)
    new = [torch.randn(n, generator=generator, dtype=torch.float64) - 2 for n in LENGTHS]
    old = [x + 0.4 * torch.randn(len(x), generator=generator, dtype=torch.float64) for x in new]
    reference = [x + 0.3 * torch.randn(len(x), generator=generator, dtype=torch.float64) for x in new]
    return new, old, torch.randn(3, generator=generator, dtype=torch.float64).tolist(), reference


def expected(kind: str, config: GrpoConfig, seed: int) -> float:
    new, old, advantages, reference = drawn(seed)
    low, high, total, tokens = 1 - config.clip_low, 1 + config.clip_high, 0.0, sum(LENGTHS)
    for p, q, a, r in zip(new, old, advantages, reference, strict=True):
        mean_ratio = math.exp(sum((p - q).tolist()) / len(p))
        for x, y, z in zip(p.tolist(), q.tolist(), r.tolist(), strict=True):
            ratio = mean_ratio if kind == "gspo" else math.exp(x - y)
            term = -min(ratio * a, min(max(ratio, low), high) * a)
            if kind == "cispo":
                term = -min(math.exp(x - y), high) * a * x
            term += config.kl_coef * (math.exp(z - x) - (z - x) - 1)
            each = len(LENGTHS) * len(p)
            total += term / {"grpo": each, "gspo": each, "dr_grpo": len(LENGTHS) * config.max_new_tokens}.get(kind, tokens)
    return total


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "cispo", "gspo"])
@pytest.mark.parametrize("seed", range(3))
def test_each_loss_is_its_papers(kind: str, seed: int) -> None:
    config = GrpoConfig(loss_type=kind, kl_coef=0.1, clip_low=0.2, clip_high=0.28, max_new_tokens=16)
    new, old, advantages, reference = drawn(seed)

    def padded(x: Tensor) -> Tensor:
        return torch.cat((torch.zeros(2, dtype=x.dtype), x))  # two tokens of a prompt

    units = []
    for p, q, a, r in zip(new, old, advantages, reference, strict=True):
        learn = torch.arange(len(p) + 2) >= 2
        fields = {"learn": learn, "old": padded(q), "reference": padded(r), "engine": padded(q)}
        fields["advantages"] = padded(torch.full_like(p, a))
        units.append(Unit((Tokens(torch.ones(len(p) + 2, dtype=torch.long), fields),)))
    tools: Any = SimpleNamespace(rewards={"some": None}, world=SimpleNamespace(size=1), seed=0)
    models: Any = {"policy": lambda batch, head: torch.cat(new), "reference": None}
    batch = pack(units)
    algorithm = Grpo(config, models, tools)
    loss, _ = algorithm.loss(batch, {**algorithm.counts(batch), "mm.micro": 1.0})
    assert loss.item() == pytest.approx(expected(kind, config, seed), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    rewards=st.lists(st.floats(-2, 2), min_size=1, max_size=8), gamma=st.floats(0.5, 1), lam=st.floats(0, 1), data=st.data()
)
def test_advantages_are_sums_of_discounted_errors(rewards: list[float], gamma: float, lam: float, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-2, 2), min_size=len(rewards), max_size=len(rewards)))
    tools: Any = SimpleNamespace(rewards={"some": None}, seed=0)
    ppo = Ppo(PpoConfig(gamma=gamma, gae_lambda=lam), {}, tools)
    found = ppo.generalised(torch.tensor(rewards, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))
    errors = [r + gamma * v - w for r, v, w in zip(rewards, [*values[1:], 0.0], values, strict=True)]
    wanted = [sum((gamma * lam) ** k * e for k, e in enumerate(errors[i:])) for i in range(len(errors))]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_value_forgets_by_the_kl() -> None:
    tracker = ValueTracker(half_life=0.06, rho_low=0.5, rho_high=0.96)
    assert tracker.known(3).value == 0.5
    tracker.update(3, 1.0, 0.06, {})  # half is kept: (0.5 + 1) / (0.5 + 1 + 0.5)
    assert tracker.known(3).value == pytest.approx(0.75)
    tracker.update(3, 1.0, 10.0, {})  # never less than rho_low
    assert tracker.known(3).value == pytest.approx(1.75 / 2)
    other = ValueTracker(half_life=0.06, rho_low=0.5, rho_high=0.96)
    other.load_state_dict(tracker.state_dict())
    assert other.known(3).value == tracker.known(3).value


def test_uncertain_prompts_come_more_often() -> None:
    tracker = ValueTracker(half_life=0.06, rho_low=0.5, rho_high=0.96)
    for row in range(8):
        for _ in range(50):
            tracker.update(row, 1.0, 0.0, {})  # known to succeed
    order = Prioritised(range(16), tracker, 0.05, seed=1)
    counts = [0] * 16
    for _ in range(500):
        batch = order.take(4)
        assert len(set(batch)) == 4
        for row in batch:
            counts[row] += 1
    assert sum(counts[8:]) > 2 * sum(counts[:8])
    again = Prioritised(range(16), tracker, 0.05, seed=1)
    again.load_state_dict(order.state_dict())
    assert again.take(4) == order.take(4)
