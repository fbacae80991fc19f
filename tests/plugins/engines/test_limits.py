"""Biases, `min_new_tokens`, constraints, and the log-probabilities of prompts and of likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.generation import LogitsProcessorList, MinNewTokensLengthLogitsProcessor, SequenceBiasLogitsProcessor

from mm.contracts import Model, Request, Sampling
from mm.core.errors import MMError, UsageError
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.plugins.engines.local.limits import limit
from mm.plugins.engines.local.rows import Row
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.kernels import Kernels

VOCABULARY = 61
CONFIG = DenseConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=96, **GEN3,
)  # fmt: skip
GREEDY = Sampling(temperature=0)


@attrs.define(eq=False)
class Walk:
    """A constraint by a table: the tokens that may follow each one; the first are those after None."""

    follows: dict[int | None, set[int]]
    seen: list[int] = attrs.field(factory=list)

    def allow(self, allowed_V: torch.Tensor) -> None:
        assert allowed_V.dtype == torch.bool and allowed_V.device.type == "cpu"
        allowed_V.zero_()
        allowed_V[sorted(self.follows.get(self.seen[-1] if self.seen else None, set()))] = True

    def accept(self, token: int) -> None:
        self.seen.append(token)


@pytest.fixture(scope="module")
def model() -> Dense:
    torch.manual_seed(0)
    model = Dense(CONFIG, Kernels()).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3)
    return model


def engine(model: Model, slots: int = 4) -> LocalEngine:
    return LocalEngine(LocalConfig(slots=slots), model, Backend())


def request(length: int = 5, seed: int = 0, new: int = 6, sampling: Sampling = GREEDY, **values: object) -> Request:
    ids = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Request(ids=tuple(ids), max_new_tokens=new, sampling=sampling, key=(1, seed), **values)


def full_logprobs(model: Model, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(pack([Unit((Tokens(torch.tensor(ids)),))]))[0].log_softmax(-1)


TOKEN = st.integers(0, VOCABULARY - 1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.dictionaries(TOKEN, st.floats(-100, 100, width=32), max_size=5), st.lists(TOKEN, max_size=3, unique=True),
            st.integers(0, 4), st.integers(0, 4),
        ),
        min_size=1, max_size=4,
    ),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_bias_and_least_length_equal_transformers(rows: list[tuple], seed: int) -> None:
    logits_AV = 3 * torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    asked, expected = [], []
    for line_V, (bias, stop, least, drawn) in zip(logits_AV, rows, strict=True):
        sampling = Sampling(logit_bias=tuple(bias.items()))
        row = Row(0, Request(ids=(1, 2), max_new_tokens=9, min_new_tokens=least, stop=tuple(stop), sampling=sampling))
        for _ in range(drawn):
            row.append(60, 0.0)
        asked.append(row)
        theirs = LogitsProcessorList()
        if bias:
            theirs.append(SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()]))
        if stop:
            theirs.append(MinNewTokensLengthLogitsProcessor(2, least, stop))
        expected.append(theirs(torch.tensor([[1, 2, *row.ids]]), line_V[None].clone())[0])
    torch.testing.assert_close(limit(logits_AV, asked), torch.stack(expected))


def test_no_stop_token_comes_before_the_least_length(model: Dense) -> None:
    (free,) = engine(model).generate([request(6, 4, 12)])
    asked = request(6, 4, 12, stop=(free.ids[0], free.ids[2], 999), min_new_tokens=5)
    (found,) = engine(model).generate([asked])
    assert len(found.ids) >= 6 or found.finish_reason == "length"
    assert not set(found.ids[:5]) & set(asked.stop)


def test_a_constraint_decides_beside_others(model: Dense) -> None:
    stop, follows = 40, {None: {1, 2}, 1: {2, 3}, 2: {3, 4}, 3: {1, 2}, 4: {40}}
    plain = [request(4, seed, 8, Sampling()) for seed in (1, 2)]
    walks = [Walk(follows), Walk({None: {9}, 9: {10}, 10: {40}})]
    constrained = [request(7, seed, 8, Sampling(), stop=(stop,), constraint=walk) for seed, walk in enumerate(walks)]
    found = engine(model, 3).generate([plain[0], *constrained, plain[1]])
    for asked, completion in zip(plain, (found[0], found[3]), strict=True):
        assert completion.ids == engine(model, 1).generate([asked])[0].ids
    for asked, walk, completion in zip(constrained, walks, found[1:3], strict=True):
        allowed = [walk.follows[token] for token in (None, *completion.ids[:-1])]
        assert all(token in tokens for token, tokens in zip(completion.ids, allowed, strict=True))
        assert walk.seen == list(completion.ids[:-1])
        # the log-probabilities are those of the tokens that are left
        logprobs = full_logprobs(model, [*asked.ids, *completion.ids])[len(asked.ids) - 1 : -1]
        for line_V, tokens, token, logprob in zip(logprobs, allowed, completion.ids, completion.logprobs, strict=True):
            left = sorted(tokens)
            assert logprob == pytest.approx(float(line_V[left].log_softmax(0)[left.index(token)]), abs=1e-5)
    assert found[2].ids == (9, 10, 40) and found[2].finish_reason == "stop"


@pytest.mark.parametrize("follows", [{None: {5}}, {None: {5}, 5: {40}}])
def test_a_constraint_that_allows_nothing_ends_its_request_alone(model: Dense, follows: dict) -> None:
    served = engine(model)
    asked = request(5, 1, 6, stop=(40,), min_new_tokens=3, constraint=Walk(follows))
    stuck, other = served.submit(asked), served.submit(request(5, 2))
    while served.busy:
        served.step()
    assert stuck.completion().finish_reason == "error" and stuck.completion().ids == (5,)
    early = "but those that min_new_tokens .3. forbids so early " if 5 in follows else ""
    with pytest.raises(MMError, match=rf"allows no token {early}after 1 generated ones.*\[40\]"):
        raise stuck.error
    assert other.completion() == engine(model).generate([request(5, 2)])[0]
    with pytest.raises(MMError, match="allows no token"):
        served.generate([attrs.evolve(asked, constraint=Walk(follows)), request(5, 2)])


def test_the_likeliest_tokens_of_each_step(model: Dense) -> None:
    asked = [request(5, 1, 6, GREEDY, top_logprobs=3), request(8, 2, 6, Sampling(temperature=0.5), top_logprobs=5), request(3, 3)]
    found = engine(model).generate(asked)
    assert found[2].top == ()
    for one, completion, temperature in zip(asked[:2], found, (1.0, 0.5), strict=False):
        logprobs = full_logprobs(model, [*one.ids, *completion.ids])[len(one.ids) - 1 : -1]
        values, ids = (logprobs / temperature).log_softmax(-1).topk(one.top_logprobs)
        assert [[token for token, _ in top] for top in completion.top] == ids.tolist()
        assert [p for top in completion.top for _, p in top] == pytest.approx(values.flatten().tolist(), abs=1e-5)
    assert [top[0][0] for top in found[0].top] == list(found[0].ids)


@pytest.mark.parametrize("new", [0, 4])
def test_log_probabilities_of_the_prompt(model: Dense, new: int) -> None:
    asked = [request(n, n, new, prompt_logprobs=True, top_logprobs=n % 4) for n in (1, 6, 9)]
    served = engine(model)
    running = [served.submit(one) for one in asked]
    while served.busy:
        served.step()
    for one, completion in zip(asked, (r.completion() for r in running), strict=True):
        lines = full_logprobs(model, one.ids)[:-1]
        expected = lines.gather(1, torch.tensor(one.ids[1:], dtype=torch.long)[:, None])
        assert completion.prompt_logprobs == pytest.approx(expected.flatten().tolist(), abs=1e-5)
        likeliest = lines.topk(one.top_logprobs).indices.tolist() if one.top_logprobs else []
        assert [[token for token, _ in top] for top in completion.prompt_top] == likeliest
        assert len(completion.ids) == new and completion.finish_reason == "length"
    alone = engine(model).generate([attrs.evolve(one, prompt_logprobs=False) for one in asked])
    assert [r.completion().ids for r in running] == [one.ids for one in alone]


WRONG = [
    ({"top_logprobs": 62}, "top_logprobs"), ({"top_logprobs": -1}, "top_logprobs"), ({"min_new_tokens": 7}, "min_new_tokens"),
    ({"ids": (3, 61)}, "The prompt has the token 61"), ({"ids": (-1,)}, "The prompt has the token -1"),
    ({"sampling": Sampling(logit_bias=((61, 1.0),))}, "logit_bias has the token 61"),
    ({"sampling": Sampling(logit_bias=((1, float("nan")),))}, "logit_bias of token 1 is nan"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_requests_that_cannot_be_served_are_refused_at_once(model: Dense, values: dict, message: str) -> None:
    served, wrong = engine(model), attrs.evolve(request(), **values)
    with pytest.raises(UsageError, match=message):
        served.submit(wrong)
    with pytest.raises(UsageError, match=message):
        served.generate([request(), wrong])
    assert not served.busy
