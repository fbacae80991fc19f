"""The losses of reinforcement against formulas in float64, written out one completion at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.contracts import Totals
from mm.plugins.algorithms.grpo import GrpoConfig
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.algorithms.grpo.losses import SURROGATES
from mm.plugins.algorithms.ppo import PpoConfig
from mm.plugins.algorithms.ppo.algorithm import Ppo
from mm.plugins.algorithms.rloo import RlooConfig
from mm.plugins.algorithms.rloo.algorithm import Rloo
from mm.plugins.algorithms.spo import SpoConfig
from mm.plugins.algorithms.spo.algorithm import Spo
from mm.plugins.algorithms.spo.tracker import Prioritised, ValueTracker
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.training.distributed import World
from mm.runtime.training.metrics import Meter
from mm.runtime.training.roles import Role
from mm.runtime.training.rollouts.experience import DrawnTokens, TokenValues
from mm.runtime.training.rollouts.losses import KL_ESTIMATORS, estimate_kl, policy_gradient

LENGTHS = (3, 1, 5)


class Given(Role):
    """A role whose head's result is given, of a model that reads sequences of any length."""

    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=None))

    def __init__(self, answer: Callable[[Any], Tensor] | None = None) -> None:
        self.answer = answer

    def __call__(self, batch: Any, head: Any) -> Tensor:
        assert self.answer is not None
        return self.answer(batch)


def drawn(seed: int) -> tuple[list[Tensor], list[Tensor], list[float], list[Tensor]]:
    """New and old log-probabilities, advantages, reference log-probabilities of three completions."""
    generator = torch.Generator().manual_seed(seed)
    new = [torch.randn(n, generator=generator, dtype=torch.float64) - 2 for n in LENGTHS]
    old = [x + 0.4 * torch.randn(len(x), generator=generator, dtype=torch.float64) for x in new]
    reference = [x + 0.3 * torch.randn(len(x), generator=generator, dtype=torch.float64) for x in new]
    return new, old, torch.randn(3, generator=generator, dtype=torch.float64).tolist(), reference


def expected(kind: str, config: GrpoConfig, seed: int) -> float:
    new, old, advantages, reference = drawn(seed)
    low, high, total, tokens = 1 - config.bounds[0], 1 + config.bounds[1], 0.0, sum(LENGTHS)
    for p, q, a, r in zip(new, old, advantages, reference, strict=True):
        mean_ratio = math.exp(sum((p - q).tolist()) / len(p))
        for x, y, z in zip(p.tolist(), q.tolist(), r.tolist(), strict=True):
            ratio = mean_ratio if kind == "gspo" else math.exp(x - y)
            term = -min(ratio * a, min(max(ratio, low), high) * a)
            if kind == "cispo":
                term = -min(math.exp(x - y), high) * a * x
            term += config.kl_coef * (math.exp(z - x) - (z - x) - 1)
            each, constant = len(LENGTHS) * len(p), len(LENGTHS) * config.max_new_tokens
            divisors = {"grpo": each, "gspo": each, "dr_grpo": constant, "dapo": tokens, "cispo": tokens}
            named = {"token-mean": tokens, "seq-mean-token-mean": each, "seq-mean-token-sum-norm": constant}
            total += term / named.get(config.loss_aggregation, divisors[kind])
    return total


def grpo_on(config: GrpoConfig, seed: int, policy: list[Tensor] | None = None) -> tuple[Grpo, list[Unit]]:
    """The algorithm with a policy that says what was drawn, and the three completions."""
    new, old, advantages, reference = drawn(seed)
    new = policy or new

    def padded(x: Tensor) -> Tensor:
        return torch.cat((torch.zeros(2, dtype=x.dtype), x))  # two tokens of a prompt

    units = []
    for row, (p, q, a, r) in enumerate(zip(new, old, advantages, reference, strict=True)):
        learn = torch.arange(len(p) + 2) >= 2
        fields = {"learn": learn, "old": padded(q), "reference": padded(r), "engine": padded(q + row)}
        fields["advantages"] = padded(torch.full_like(p, a))
        units.append(Unit((Tokens(torch.ones(len(p) + 2, dtype=torch.long), fields),), row_index=row))
    tools: Any = SimpleNamespace(rewards={"some": None}, world=SimpleNamespace(size=1), seed=0, max_length=None)
    models: Any = {"policy": Given(lambda batch: torch.cat([new[u.row_index] for u in batch.units])), "reference": Given()}
    return Grpo(config, models, tools), units


def totals_of(algorithm: Any, batch: Packed) -> Totals:
    """Of a step of one micro-batch."""
    return Totals.of([batch], algorithm.counts(batch))


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "cispo", "gspo"])
@pytest.mark.parametrize("seed", range(3))
def test_each_loss_is_its_papers(kind: str, seed: int) -> None:
    config = GrpoConfig(loss_type=kind, kl_coef=0.1, clip_low=None if kind == "cispo" else 0.2, clip_high=0.28, max_new_tokens=16)
    algorithm, units = grpo_on(config, seed)
    batch = pack(units)
    loss, _ = algorithm.loss(batch, totals_of(algorithm, batch))
    assert loss.item() == pytest.approx(expected(kind, config, seed), rel=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "cispo", "dr_grpo"])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_each_loss_can_be_averaged_as_another(kind: str, aggregation: str) -> None:
    config = GrpoConfig(loss_type=kind, loss_aggregation=aggregation, kl_coef=0.1, max_new_tokens=16)
    algorithm, units = grpo_on(config, 1)
    batch = pack(units)
    assert algorithm.loss(batch, totals_of(algorithm, batch))[0].item() == pytest.approx(expected(kind, config, 1), rel=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "cispo"])
def test_minimind_3_s_losses_can_be_had(kind: str) -> None:
    """`train_grpo.py` of MiniMind 3 on the same figures, padded, with epsilon_high 5.0 as the bound of the ratio itself."""
    new, old, advantages, reference = drawn(0)
    pad = torch.nn.utils.rnn.pad_sequence
    leaves = [x.clone().requires_grad_() for x in new]
    p, q, r = (pad(list(rows), batch_first=True) for rows in (leaves, old, reference))
    mask = pad([torch.ones(n, dtype=torch.float64) for n in LENGTHS], batch_first=True)
    ratio, a, gap = (p - q).exp(), torch.tensor(advantages, dtype=torch.float64)[:, None], r - p
    if kind == "cispo":
        term = -(ratio.clamp(max=5.0).detach() * a * p - 0.1 * (gap.exp() - gap - 1))
    else:
        term = -(torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a) - 0.1 * (gap.exp() - gap - 1))
    theirs = ((term * mask).sum(1) / mask.sum(1)).mean()
    theirs.backward()

    own = [x.clone().requires_grad_() for x in new]
    bounds = {"clip_high": 4.0} if kind == "cispo" else {}
    algorithm, units = grpo_on(
        GrpoConfig(loss_type=kind, loss_aggregation="seq-mean-token-mean", kl_coef=0.1, **bounds), 0, policy=own
    )
    batch = pack(units)
    loss, _ = algorithm.loss(batch, totals_of(algorithm, batch))
    loss.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    torch.testing.assert_close([x.grad for x in own], [x.grad for x in leaves], atol=1e-7, rtol=1e-5)


def test_rloo_takes_a_completion_as_one_action() -> None:
    """While a rollout is used once, the gradient is -A grad log p(completion), whatever its length, up to one constant."""
    said = [torch.full((n,), -2.0, dtype=torch.float64, requires_grad=True) for n in LENGTHS]
    units = []
    for row, n in enumerate(LENGTHS):
        fields = {"learn": torch.arange(n + 1) >= 1, "engine": torch.zeros(n + 1), "advantages": torch.full((n + 1,), row - 1.0)}
        units.append(Unit((Tokens(torch.ones(n + 1, dtype=torch.long), fields),), row_index=row))
    tools: Any = SimpleNamespace(rewards={"some": None}, world=World(), seed=0, max_length=None)
    models: Any = {"policy": Given(lambda batch: torch.cat(said))}
    rloo = Rloo(RlooConfig(max_new_tokens=16, kl_coef=0.0), models, tools)
    batch = pack(units)
    rloo.loss(batch, totals_of(rloo, batch))[0].backward()
    for advantage, logprobs in zip((-1.0, 0.0, 1.0), said, strict=True):
        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == pytest.approx([-advantage / (3 * 16)] * len(logprobs))


def test_figures_do_not_depend_on_how_a_step_was_cut() -> None:
    algorithm, units = grpo_on(GrpoConfig(), 0)
    found = []
    for cut in ([units], [units[:1], units[1:]], [[unit] for unit in units]):
        meter, packs = Meter(), [pack(part) for part in cut]
        totals = Totals.of(packs)
        assert (totals.sequences, totals.targets) == (3.0, 9.0)
        for batch in packs:
            meter.add(algorithm.loss(batch, totals)[1])
        found.append(meter.read(World()))
    assert found[0]["engine_gap_max"] == pytest.approx(2.0) and found[0].keys() > {"clip_fraction", "kl", "loss"}
    assert all(other == pytest.approx(found[0]) for other in found[1:])


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_cut_is_what_has_no_gradient(kind: str) -> None:
    """A clipped position learns nothing; beyond the bound that its advantage leads away from, it does."""
    for seed in range(5):
        new, old, advantages, _ = drawn(seed)
        moved = [x.clone().requires_grad_() for x in new]
        loss, cut = cutting(kind, moved, old, advantages)
        loss.sum().backward()
        still = torch.cat([x.grad == 0 for x in moved])  # type: ignore[comparison-overlap]
        assert cut.tolist() == still.tolist()
    signs = [(1.0, 0.5, True), (1.0, -0.5, False), (-1.0, 0.5, False), (-1.0, -0.5, True)]
    for advantage, step, is_cut in signs:
        assert cutting(kind, [torch.tensor([step])], [torch.tensor([0.0])], [advantage])[1].tolist() == [is_cut]
    # log ratios of +-0.5 in one completion: their mean is 0, so a ratio of the whole is not cut
    both = cutting(kind, [torch.tensor([0.5, -0.5])], [torch.zeros(2)], [1.0])[1]
    assert both.tolist() == ([False, False] if kind == "gspo" else [True, False])


def test_the_policy_gradient_is_reinforces() -> None:
    """The gradient of -ratio A where the ratio is 1: -A grad log p; with old log-probabilities, times the ratio."""
    new, old, advantages, _ = drawn(2)
    batch = pack(after_a_token(new))
    given = torch.cat([torch.full_like(p, a) for p, a in zip(new, advantages, strict=True)])
    for before, ratio in ((None, torch.ones(9).double()), (torch.cat(old), (torch.cat(new) - torch.cat(old)).exp())):
        logprobs = torch.cat(new).requires_grad_()
        values = TokenValues(advantages=given, engine=torch.cat(old), old=before)
        policy_gradient(DrawnTokens.of(batch, logprobs, values)).sum().backward()
        assert logprobs.grad is not None
        torch.testing.assert_close(logprobs.grad, -ratio * given)


def test_cispo_cuts_weights() -> None:
    new, old, advantages, _ = drawn(1)
    loss, cut = cutting("cispo", new, old, advantages)
    uncut = [-(p - q).exp() * a * p for p, q, a in zip(new, old, advantages, strict=True)]
    assert cut.tolist() == (loss != torch.cat(uncut)).tolist() and 0 < int(cut.sum()) < len(cut)


def after_a_token(new: list[Tensor]) -> list[Unit]:
    """Completions with so many log-probabilities, of a prompt of one token."""
    return [Unit((Tokens(torch.ones(len(p) + 1, dtype=torch.long), {"learn": torch.arange(len(p) + 1) >= 1}),)) for p in new]


def cutting(kind: str, new: list[Tensor], old: list[Tensor], advantages: list[float]) -> tuple[Tensor, Tensor]:
    """A surrogate of completions of a prompt of one token, with the bounds 0.8 and 1.2."""
    batch = pack(after_a_token(new))
    given = torch.cat([torch.full_like(p, a) for p, a in zip(new, advantages, strict=True)]).detach()
    values = TokenValues(advantages=given, engine=torch.cat(old), old=torch.cat(old))
    return SURROGATES[kind](DrawnTokens.of(batch, torch.cat(new), values), 0.2, 0.2)


@settings(max_examples=50, deadline=None)
@given(
    rewards=st.lists(st.floats(-2, 2), min_size=1, max_size=8), gamma=st.floats(0.5, 1), lam=st.floats(0, 1), data=st.data()
)
def test_advantages_are_sums_of_discounted_errors(rewards: list[float], gamma: float, lam: float, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-2, 2), min_size=len(rewards), max_size=len(rewards)))
    tools: Any = SimpleNamespace(rewards={"some": None}, seed=0, max_length=None)
    ppo = Ppo(PpoConfig(gamma=gamma, gae_lambda=lam), {}, tools)
    found = ppo.generalised_advantages(torch.tensor(rewards, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))
    errors = [r + gamma * v - w for r, v, w in zip(rewards, [*values[1:], 0.0], values, strict=True)]
    wanted = [sum((gamma * lam) ** k * e for k, e in enumerate(errors[i:])) for i in range(len(errors))]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_value_forgets_by_the_kl() -> None:
    tracker = ValueTracker(half_life=0.06, rho_low=0.5, rho_high=0.96)
    assert tracker.look_up(3).value == 0.5
    tracker.update(3, 1.0, 0.06, {})  # half is kept: (0.5 + 1) / (0.5 + 1 + 0.5)
    assert tracker.look_up(3).value == pytest.approx(0.75)
    tracker.update(3, 1.0, 10.0, {})  # never less than rho_low
    assert tracker.look_up(3).value == pytest.approx(1.75 / 2)
    other = ValueTracker(half_life=0.06, rho_low=0.5, rho_high=0.96)
    other.load_state_dict(tracker.state_dict())
    assert other.look_up(3).value == tracker.look_up(3).value


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


# ---- what is told apart by formulas


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_each_estimate_of_the_kl_is_schulmans(estimator: str) -> None:
    """r = p_reference / p: -log r, (log r)^2 / 2, (r - 1) - log r; the first and the last without bias."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    found = estimate_kl(estimator, p, q)
    for x, y, value in zip(p.tolist(), q.tolist(), found.tolist(), strict=True):
        r = math.exp(y) / math.exp(x)
        assert value == pytest.approx({"k1": -math.log(r), "k2": math.log(r) ** 2 / 2, "k3": r - 1 - math.log(r)}[estimator])
    if estimator != "k2":
        assert (p.exp() * found).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item())


def ppo_on(
    new: list[float], said: list[float], config: PpoConfig | None = None, **fields: list[float]
) -> tuple[Ppo, Any, Any]:
    """A step of a PPO whose models say `new` log-probabilities and the values `said` of one completion with these fields."""
    zeros = [0.0] * len(new)
    known = {"old": new, "values": said, "returns": said, "advantages": zeros, "kl": zeros} | fields
    padded = {name: torch.tensor([0.0, *row], dtype=torch.float64) for name, row in known.items()}
    padded |= {"learn": torch.arange(len(new) + 1) >= 1, "engine": padded["old"]}
    batch = pack([Unit((Tokens(torch.ones(len(new) + 1, dtype=torch.long), padded),))])
    models: Any = {
        "policy": Given(lambda batch: torch.tensor(new, dtype=torch.float64)),
        "critic": Given(lambda batch: torch.tensor(said, dtype=torch.float64)),
        **({"reference": Given()} if "reference" in fields else {}),
    }
    tools: Any = SimpleNamespace(rewards={"some": None}, world=World(), seed=0, max_length=None)
    ppo = Ppo(config or PpoConfig(value_clip=0.2, value_coef=0.5, kl_stop=0.25), models, tools)
    return ppo, batch, ppo.loss(batch, totals_of(ppo, batch))


def test_a_value_is_learned_no_faster_than_its_clip() -> None:
    values, old, returns = [0.0, 0.5, 1.0, -1.0], [0.0, 0.0, 0.9, 0.5], [1.0, 1.0, 0.0, -2.0]
    total = 0.0
    for value, before, target in zip(values, old, returns, strict=True):
        near = min(max(value, before - 0.2), before + 0.2)
        total += 0.5 * max((value - target) ** 2, (near - target) ** 2)
    _, _, (loss, metrics) = ppo_on([-1.0] * 4, values, values=old, returns=returns)
    assert loss.item() == pytest.approx(0.5 * total / 4) and metrics["value_loss"][0].item() == pytest.approx(total / 4)


def test_a_rollout_is_dropped_when_the_policy_has_moved() -> None:
    """The mean of r - 1 - log r over the drawn tokens, against --kl-stop 0.25; asked once for each step."""
    for step, drop in ((0.1, False), (0.6, False), (0.7, True), (-1.5, True)):
        ppo, _, _ = ppo_on([-1.0 + step] * 3, [0.0] * 3, old=[-1.0] * 3)
        assert (math.exp(step) - 1 - step > 0.25) == drop
        assert ppo.after_step(1) is drop
        assert ppo.after_step(2) is False


def test_minimind_3_s_kl_is_in_the_loss() -> None:
    """`train_ppo.py` of MiniMind 3: k3 of the reference, a mean over drawn tokens, is added; no reward has a part of it."""
    new, old, reference, advantages = [-1.0, -2.0, -0.5], [-1.1, -1.7, -0.9], [-1.5, -1.0, -0.6], [0.5, -1.0, 2.0]
    config = PpoConfig(kl_in="loss", kl_coef=0.02)
    ppo, _, (loss, metrics) = ppo_on(new, [0.0] * 3, config, old=old, reference=reference, advantages=advantages)
    surrogate = kl = 0.0
    for p, q, r, a in zip(new, old, reference, advantages, strict=True):
        ratio = math.exp(p - q)
        surrogate += max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
        kl += math.exp(r - p) - (r - p) - 1
    assert loss.item() == pytest.approx(surrogate / 3 + 0.02 * kl / 3)
    assert metrics["kl"][0].item() == pytest.approx(kl)
    sample: Any = SimpleNamespace(reward=2.0)
    assert ppo.token_rewards(sample, torch.tensor([1.0, -2.0, 4.0])).tolist() == [0.0, 0.0, 2.0]


def test_a_rollout_is_dropped_as_in_minimind_3() -> None:
    """Half the mean squared log-ratio, against --kl-stop 0.25."""
    for step, drop in ((0.7, False), (0.72, True), (-0.7, False), (-0.72, True)):
        ppo, _, _ = ppo_on([-1.0 + step] * 3, [0.0] * 3, PpoConfig(kl_stop_estimator="k2"), old=[-1.0] * 3)
        assert (step**2 / 2 > 0.25) == drop
        assert ppo.after_step(1) is drop


def test_the_weight_of_the_kl_follows_its_target() -> None:
    """arXiv:1909.08593, section 2.2: beta (1 + 0.1 clip(KL / target - 1, -0.2, 0.2))."""
    tools: Any = SimpleNamespace(rewards={"some": None}, world=World(), seed=0, max_length=None)
    for gap, factor in ((0.1, 1.0), (0.11, 1.01), (5.0, 1.02), (0.0, 0.98)):
        ppo = Ppo(PpoConfig(kl_coef=0.5, kl_target=0.1), {}, tools)
        ppo.adapt_kl_coef([torch.full((3,), gap), torch.full((1,), gap), torch.empty(0)])
        assert ppo.kl_coef == pytest.approx(0.5 * factor)
        other = Ppo(PpoConfig(kl_coef=0.5, kl_target=0.1), {}, tools)
        other.load_state_dict(ppo.state_dict())
        assert other.kl_coef == ppo.kl_coef
    # by tokens: (3 x 0.1 + 1 x 0.14) / 4 = 0.11
    ppo = Ppo(PpoConfig(kl_coef=0.5, kl_target=0.1), {}, tools)
    ppo.adapt_kl_coef([torch.full((3,), 0.1), torch.full((1,), 0.14)])
    assert ppo.kl_coef == pytest.approx(0.5 * 1.01)
    fixed = Ppo(PpoConfig(kl_coef=0.5), {}, tools)
    fixed.adapt_kl_coef([torch.full((3,), 9.0)])
    assert fixed.kl_coef == 0.5


def test_the_kl_is_taken_from_the_reward_of_each_token() -> None:
    tools: Any = SimpleNamespace(rewards={"some": None}, seed=0, max_length=None)
    sample: Any = SimpleNamespace(reward=2.0)
    found = Ppo(PpoConfig(kl_coef=0.5), {}, tools).token_rewards(sample, torch.tensor([1.0, -2.0, 4.0]))
    assert found.tolist() == [-0.5, 1.0, 0.0]


def test_one_value_for_all_prompts_is_minimind_s() -> None:
    """`--value-tracker global`: every prompt is compared with one value, which forgets by the change of the mean."""
    tools: Any = SimpleNamespace(rewards={"some": None}, world=World(), seed=0, max_length=None)
    config = SpoConfig(value_tracker="global", normalise=False, kl_half_life=0.06, rho_low=0.5, rho_high=0.96)
    spo = Spo(config, {}, tools)
    assert spo.order("as it was", [0, 1]) == "as it was"

    def answered(row: int, reward: float, logprob: float) -> Any:
        drawn = {"logprobs": [0.0, logprob, logprob], "learn": [False, True, True]}
        return SimpleNamespace(unit=SimpleNamespace(row_index=row), reward=reward, drawn_logprobs=drawn["logprobs"][1:], **drawn)

    first = [answered(0, 1.0, -1.0), answered(1, 0.0, -1.0), answered(2, 1.0, -1.0)]
    assert [a for (a,) in spo.advantages([[sample] for sample in first])] == pytest.approx([0.5, -0.5, 0.5])
    # alpha and beta begin with 1; nothing is known of how the policy moved, so 0.96 of them is kept
    alpha, beta = 0.96 + 2 / 3, 0.96 + 1 / 3
    assert spo.advantages([[answered(9, 0.25, -1.06)]])[0] == pytest.approx([0.25 - alpha / (alpha + beta)])
    # 0.06 further: half is kept
    (third,) = spo.advantages([[answered(3, 1.0, -1.06)]])
    alpha, beta = alpha / 2 + 0.25, beta / 2 + 0.75
    assert third == pytest.approx([1 - alpha / (alpha + beta)])
