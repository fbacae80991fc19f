"""Sampling against a float64 reference written the long way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mm.contracts import Sampling
from mm.core.errors import UsageError
from mm.plugins.engines.local.sampling import Sampler, check_sampling, uniform

CPU = torch.device("cpu")
VOCABULARY = 23


def logits(rows: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def reference(row: torch.Tensor, sampling: Sampling) -> list[float]:
    """Filtered, normalised probabilities of one row, by sorting."""
    exact = (row.double() / (sampling.temperature or 1)).softmax(-1).tolist()
    order = sorted(range(VOCABULARY), key=lambda i: -exact[i])
    kept = order[: sampling.top_k or VOCABULARY]
    share = sum(exact[i] for i in kept)
    nucleus, mass = [], 0.0
    for i in kept:
        if sampling.top_p < 1 and mass >= sampling.top_p * share:
            break
        nucleus.append(i)
        mass += exact[i]
    return [exact[i] / mass if i in nucleus else 0.0 for i in range(VOCABULARY)]


def inverse(probabilities: list[float], number: float) -> int:
    total = 0.0
    for index, probability in enumerate(probabilities):
        total += probability
        if number < total:
            return index
    return max(i for i, p in enumerate(probabilities) if p)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from((0.3, 1.0, 1.7)),
    top_p=st.sampled_from((0.05, 0.5, 0.9, 0.999, 1.0)),
    top_k=st.sampled_from((0, 1, 3, 10, VOCABULARY, 500)),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(SAMPLINGS, min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_filters_and_draws_equal_the_reference(rows: list[Sampling], seed: int) -> None:
    logits_AV = logits(len(rows), seed)
    sampler = Sampler(rows, CPU)
    temperature = torch.tensor([[row.temperature] for row in rows])
    found = sampler.filtered((logits_AV / temperature).log_softmax(-1)).double()
    found /= found.sum(-1, keepdim=True)
    expected = [reference(row, sampling) for row, sampling in zip(logits_AV, rows, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5)
    assert torch.equal(found > 0, torch.tensor(expected) > 0)
    for draw in range(5):
        numbers = [uniform(seed + i, draw) for i in range(len(rows))]
        ids = sampler(logits_AV, numbers)[0].tolist()
        assert ids == [inverse(e, n) for e, n in zip(expected, numbers, strict=True)]


def test_every_token_of_the_support_and_no_other_is_reached() -> None:
    rows = [Sampling(top_k=5)]
    logits_AV = logits(1, 3)
    expected = reference(logits_AV[0], rows[0])
    sampler = Sampler(rows, CPU)
    edges = [0.0, *torch.tensor(expected, dtype=torch.float64).cumsum(0).tolist()]
    for index, probability in enumerate(expected):
        if probability:
            middle = (edges[index] + edges[index + 1]) / 2
            assert sampler(logits_AV, [middle])[0].tolist() == [index]
    for number in (0.0, 1 - 2**-32):
        assert expected[int(sampler(logits_AV, [number])[0].item())] > 0


def test_logprobs_are_those_before_the_filters() -> None:
    logits_AV = logits(3, 5)
    rows = [Sampling(temperature=0.5, top_k=2), Sampling(temperature=0), Sampling(top_p=0.3)]
    ids, found = Sampler(rows, CPU)(logits_AV, [0.7, 0.7, 0.7]).tolist()
    for row, token, logprob, temperature in zip(logits_AV, ids, found, (0.5, 1, 1), strict=True):
        assert logprob == pytest.approx((row.double() / temperature).log_softmax(-1)[int(token)].item(), abs=1e-5)
    assert ids[1] == logits_AV[1].argmax()


def test_greedy_rows_beside_others_stay_greedy() -> None:
    logits_AV = logits(2, 1)
    rows = [Sampling(temperature=0, top_k=3, top_p=0.1), Sampling(temperature=1.5)]
    for draw in range(20):
        ids = Sampler(rows, CPU)(logits_AV, [uniform(draw, 0)] * 2)[0].tolist()
        assert ids[0] == logits_AV[0].argmax()


def test_uniform_numbers_depend_on_seed_and_draw_and_fill_the_interval() -> None:
    numbers = [uniform(seed, draw) for seed in range(40) for draw in range(100)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= n < 1 for n in numbers)
    for tenth in range(10):
        share = sum(tenth <= 10 * n < tenth + 1 for n in numbers) / len(numbers)
        assert share == pytest.approx(0.1, abs=0.02)
    assert uniform(7, 3) == uniform(7, 3)


def test_logits_that_are_no_numbers_do_not_leave_the_vocabulary() -> None:
    ids, logprobs = Sampler([Sampling()], CPU)(torch.full((1, VOCABULARY), math.nan), [0.5]).tolist()
    assert 0 <= ids[0] < VOCABULARY
    assert math.isnan(logprobs[0])


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": 1e-9}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        check_sampling(Sampling(**wrong))
