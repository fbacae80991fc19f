"""Penalties and min-p against transformers' logits processors, and what they leave as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mm.contracts import Completion, Request, Sampling
from mm.core.errors import UsageError
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.plugins.engines.local.penalties import Penalties
from mm.plugins.engines.local.rows import Row
from mm.plugins.engines.local.sampling import Sampler, uniform
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.kernels import Kernels

CPU = torch.device("cpu")
VOCABULARY = 61
CONFIG = DenseConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, **GEN3,
)  # fmt: skip

SAMPLINGS = st.builds(
    Sampling,
    repetition_penalty=st.sampled_from((0.5, 1.0, 1.3, 4.0)),
    presence_penalty=st.sampled_from((-0.7, 0.0, 1.5)),
    frequency_penalty=st.sampled_from((-0.2, 0.0, 0.4, 2.0)),
    temperature=st.sampled_from((0.4, 1.0, 1.7)),
    top_k=st.sampled_from((0, 3, 20)),
    top_p=st.sampled_from((0.5, 0.93, 1.0)),
    min_p=st.sampled_from((0.0, 0.02, 0.3, 1.0)),
)
IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
DRAWN = st.lists(st.integers(0, 9), max_size=12)  # of few tokens, so that some repeat


@pytest.fixture(scope="module")
def model() -> Dense:
    torch.manual_seed(0)
    model = Dense(CONFIG, Kernels()).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(5)  # sharp logits: no near ties, and a wrong position shows
    return model


def logits(rows: int, seed: int) -> Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def row(prompt: Sequence[int], drawn: Sequence[int], sampling: Sampling) -> Row:
    found = Row(0, Request(ids=tuple(prompt), max_new_tokens=99, sampling=sampling))
    for token in drawn:
        found.append(token, 0.0)
    return found


def penalised(logits_V: Tensor, prompt: Sequence[int], drawn: Sequence[int], sampling: Sampling) -> Tensor:
    """transformers' repetition penalty over prompt and completion, then OpenAI's formula over the completion alone."""
    repetition = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
    found = repetition(torch.tensor([[*prompt, *drawn]]), logits_V[None].clone())[0]
    for token in set(drawn):
        found[token] -= sampling.frequency_penalty * list(drawn).count(token) + sampling.presence_penalty
    return found


def filtered(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities by transformers' warpers, in the order in which its `generate` applies them."""
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    return LogitsProcessorList(warpers)(torch.zeros(1, 0, dtype=torch.long), logits_V[None].clone())[0].softmax(-1)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(IDS, DRAWN, SAMPLINGS), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_penalties_then_filters_equal_transformers(rows: list[tuple[list[int], list[int], Sampling]], seed: int) -> None:
    logits_AV = logits(len(rows), seed)
    found_AV = Penalties([row(*one) for one in rows], VOCABULARY, CPU)(logits_AV)
    expected_AV = torch.stack([penalised(line, *one) for line, one in zip(logits_AV, rows, strict=True)])
    torch.testing.assert_close(found_AV, expected_AV, atol=1e-5, rtol=1e-6)
    sampler = Sampler([sampling for _, _, sampling in rows], CPU)
    kept_AV = sampler.filtered((found_AV / sampler.temperature_A1).log_softmax(-1))
    theirs_AV = torch.stack([filtered(line, sampling) for line, (_, _, sampling) in zip(found_AV, rows, strict=True)])
    torch.testing.assert_close(kept_AV / kept_AV.sum(-1, keepdim=True), theirs_AV, atol=1e-6, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(prompt=IDS, drawn=DRAWN, other=SAMPLINGS, seed=st.integers(0, 999))
def test_a_penalty_that_is_off_changes_no_bit(prompt: list[int], drawn: list[int], other: Sampling, seed: int) -> None:
    logits_AV = logits(2, seed)
    logits_AV[0, :3] = torch.tensor([-0.0, 0.0, -torch.inf])
    found_AV = Penalties([row(prompt, drawn, Sampling()), row(prompt, drawn, other)], VOCABULARY, CPU)(logits_AV)
    assert torch.equal(found_AV[0].view(torch.int32), logits_AV[0].view(torch.int32))
    # min-p of one row does not change another either, and 0 keeps all
    alone, beside = Sampler([Sampling(top_p=0.9)], CPU), Sampler([Sampling(top_p=0.9), Sampling(min_p=0.5)], CPU)
    logprobs_AV = logits_AV.log_softmax(-1)
    assert torch.equal(alone.filtered(logprobs_AV[:1])[0], beside.filtered(logprobs_AV)[0])


def request(number: int, sampling: Sampling, new: int = 14) -> Request:
    ids = torch.randint(VOCABULARY, (3 + 2 * number,), generator=torch.Generator().manual_seed(number)).tolist()
    return Request(ids=tuple(ids), max_new_tokens=new, sampling=sampling, key=(1, number))


def by_hand(model: Dense, asked: Request) -> Completion:
    """A loop over full forwards: penalise by transformers, draw by the key, without a cache or a batch."""
    ids, logprobs, seed = [], [], Row(0, asked).seed
    for draw in range(asked.max_new_tokens):
        batch = pack([Unit((Tokens(torch.tensor([*asked.ids, *ids])),))])
        line_V = penalised(model(batch)[0][-1].float(), asked.ids, ids, asked.sampling)
        scaled_V = (line_V / (asked.sampling.temperature or 1)).log_softmax(-1)
        token = int(line_V.argmax())
        if asked.sampling.temperature:
            sums_V = filtered(line_V, asked.sampling).double().cumsum(-1)
            token = int(torch.searchsorted(sums_V, uniform(seed, draw) * sums_V[-1], right=True))
        ids.append(token)
        logprobs.append(float(scaled_V[token]))
    return Completion(ids=tuple(ids), logprobs=tuple(logprobs), finish_reason="length")


PENALISED = (
    Sampling(temperature=0, repetition_penalty=1.5),
    Sampling(temperature=0, presence_penalty=2.0, frequency_penalty=0.5),
    Sampling(temperature=0.9, repetition_penalty=1.2, frequency_penalty=1.0, top_k=30, top_p=0.95, min_p=0.01),
    Sampling(temperature=1.3, min_p=0.2),
    Sampling(temperature=0),
)


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_the_engine_draws_as_by_hand_in_any_slot_and_batch(model: Dense, slots: int) -> None:
    requests = [request(number, sampling) for number, sampling in enumerate(PENALISED)]
    # of different lengths, so that rows end and begin beside others that go on
    requests = [attrs.evolve(one, max_new_tokens=14 - 3 * number % 7) for number, one in enumerate(requests)]
    engine = LocalEngine(LocalConfig(slots=slots), model, Backend())
    for order in (requests, requests[::-1]):
        for found, asked in zip(engine.generate(order), order, strict=True):
            expected = by_hand(model, asked)
            assert found.ids == expected.ids
            assert found.logprobs == pytest.approx(expected.logprobs, abs=2e-4)


def test_a_strong_penalty_never_repeats_and_a_negative_one_repeats(model: Dense) -> None:
    engine = LocalEngine(LocalConfig(slots=4), model, Backend())
    samplings = [Sampling(temperature=0, repetition_penalty=1e6), Sampling(temperature=0, frequency_penalty=-2.0)]
    once, often = engine.generate([request(1, sampling, 20) for sampling in samplings])
    assert len(set(once.ids)) == 20 and not set(once.ids) & set(request(1, Sampling()).ids)
    assert len(set(often.ids)) < 10


def test_on_token_ends_a_completion(model: Dense) -> None:
    engine = LocalEngine(LocalConfig(slots=2), model, Backend())
    requests = [request(number, Sampling()) for number in range(3)]
    whole = engine.generate(requests)
    taken = [0, 0, 0]

    def end(index: int, token: int, logprob: float) -> bool:
        taken[index] += 1
        return index == 1 and taken[index] == 5

    for number, (found, expected) in enumerate(zip(engine.generate(requests, end), whole, strict=True)):
        length, reason = (5, "stop") if number == 1 else (14, "length")
        assert (found.ids, found.finish_reason, taken[number]) == (expected.ids[:length], reason, length)


WRONG = [
    {"min_p": 1.01}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"repetition_penalty": float("nan")},
    {"presence_penalty": 2.1}, {"frequency_penalty": float("inf")},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_the_engine_refuses_what_is_out_of_range(model: Dense, wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        LocalEngine(None, model, Backend()).generate([request(1, Sampling(**wrong))])
