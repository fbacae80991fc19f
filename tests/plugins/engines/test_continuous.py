"""The local engine with requests that come while others run: what each of them gets, and how the forwards are shared."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from plain_model import Uncached

from mm.contracts import Completion, Model, Request, Running, Sampling, SupportsContinuous
from mm.core.errors import MMError, UsageError
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.plugins.engines.local.rows import Placed, Row, chunk_of
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.kernels import Kernels

VOCABULARY, POSITIONS = 61, 96
CONFIG = DenseConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=POSITIONS, **GEN3,
)  # fmt: skip
GREEDY = Sampling(temperature=0)
SAMPLINGS = (
    GREEDY, Sampling(), Sampling(temperature=0.8, top_p=0.9, top_k=20), Sampling(temperature=0.7, repetition_penalty=1.3),
    Sampling(temperature=1.2, logit_bias=((5, 3.0), (7, -100.0))),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Dense:
    torch.manual_seed(0)
    model = Dense(CONFIG, Kernels()).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3)  # no near ties, and a wrong position shows
    return model


@pytest.fixture(scope="module")
def exact_model(model: Dense) -> Dense:
    """The model in float64: its large weights and a low temperature magnify float32's rounding to what a fault may be."""
    return copy.deepcopy(model).double()


def engine(model: Model, slots: int = 4, **options: object) -> LocalEngine:
    return LocalEngine(LocalConfig(slots=slots, **options), model, Backend())


def ids_of(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def request(length: int = 5, seed: int = 0, new: int = 6, sampling: Sampling = GREEDY, **values: object) -> Request:
    return Request(ids=ids_of(length, seed), max_new_tokens=new, sampling=sampling, key=(1, seed), **values)


def finish(served: LocalEngine) -> list[Running]:
    ended = []
    while served.busy:
        ended += served.step()
    return ended


def full_logprobs(model: Model, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(pack([Unit((Tokens(torch.tensor(ids)),))]))[0].log_softmax(-1)


def assert_same(found: Completion, expected: Completion) -> None:
    assert (found.ids, found.finish_reason) == (expected.ids, expected.finish_reason)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert found.prompt_logprobs == pytest.approx(expected.prompt_logprobs, abs=1e-5)
    for one, other in zip((*found.top, *found.prompt_top), (*expected.top, *expected.prompt_top), strict=True):
        assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-5)


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 60),  # length
        st.integers(0, 3),  # of few seeds, so that prompts are equal or begin alike
        st.integers(0, 9),  # new tokens
        st.sampled_from(SAMPLINGS),
        st.booleans(),  # prompt_logprobs
        st.integers(0, 6),  # steps before it comes
        st.none() | st.integers(0, 8),  # steps after which it is cancelled
    ),
    min_size=1, max_size=9,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    asked=REQUESTS, slots=st.integers(1, 5), chunk=st.sampled_from((1, 3, 8, 20, 512)), slot_tokens=st.sampled_from((80, 96))
)
def test_arrivals_cancels_and_chunks_change_nothing(
    exact_model: Dense, asked: list[tuple], slots: int, chunk: int, slot_tokens: int
) -> None:
    served = engine(exact_model, slots, prefill_tokens=chunk, slot_tokens=slot_tokens)
    running: list[tuple[Running, int | None]] = []
    ended: list[Running] = []
    steps, cancels = 0, dict[int, list[Running]]()
    coming = deque(sorted(enumerate(asked), key=lambda one: one[1][5]))
    while coming or served.busy:
        while coming and coming[0][1][5] <= steps:
            number, (length, seed, new, sampling, scored, _, cancelled) = coming.popleft()
            values = {"prompt_logprobs": scored, "top_logprobs": number % 3, "stop": (3, 17), "key": (4, number)}
            # `request` of equal seeds: one prompt is the beginning of the other
            running.append((served.submit(attrs.evolve(request(length, seed, new, sampling), **values)), cancelled))
            if cancelled is not None:
                cancels.setdefault(steps + cancelled, []).append(running[-1][0])
        for one in cancels.pop(steps, []):
            served.cancel(one)
        ended += served.step()
        steps += 1
    assert len(set(map(id, ended))) == len(ended)
    for one, cancelled in running:
        assert one.finished and one.error is None
        (expected,) = engine(exact_model, 1).generate([one.request])
        found = one.completion()
        if found.finish_reason == "cancelled":
            assert cancelled is not None and one not in ended
            assert found.ids == expected.ids[: len(found.ids)]
        else:
            assert one in ended
            assert_same(found, expected)


def by_full_forwards(model: Model, asked: Request) -> tuple[list[int], list[float]]:
    ids, logprobs = list(asked.ids), []
    for _ in range(asked.max_new_tokens):
        line_V = full_logprobs(model, ids)[-1]
        ids.append(int(line_V.argmax()))
        logprobs.append(float(line_V.max()))
    return ids[len(asked.ids) :], logprobs


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_greedy_equals_full_forwards_beside_others(model: Dense, chunk: int, cached: bool) -> None:
    served = engine(model if cached else Uncached(model).eval(), 3, prefill_tokens=chunk)
    assert isinstance(served, SupportsContinuous)
    running = []
    for length, seed, new in ((30, 1, 6), (4, 2, 9), (30, 1, 3), (41, 1, 5), (9, 3, 4)):
        running.append(served.submit(request(length, seed, new)))
        served.step()
    finish(served)
    for one in running:
        ids, logprobs = by_full_forwards(model, one.request)
        assert list(one.completion().ids) == ids
        assert one.completion().logprobs == pytest.approx(logprobs, abs=1e-5)


def read_lengths(model: Dense, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """The forwards of an engine that decodes by `decode`: their kinds and the tokens of each row."""
    forwards: list[tuple[str, list[int]]] = []
    prefill, decode = model.prefill, model.decode

    def reading(batch: object, *rest: object) -> torch.Tensor:
        forwards.append(("read", list(batch.lengths)))
        return prefill(batch, *rest)

    def decoding(ids_A: torch.Tensor, *rest: object) -> torch.Tensor:
        forwards.append(("decode", [1] * len(ids_A)))
        return decode(ids_A, *rest)

    monkeypatch.setattr(model, "prefill", reading)
    monkeypatch.setattr(model, "decode", decoding)
    return forwards


def test_a_long_prompt_stalls_nobody(model: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = read_lengths(model, monkeypatch)
    served = engine(model, 4, prefill_tokens=8, fast=False)
    served.submit(request(3, 1, 30))
    served.step()
    long = served.submit(request(60, 2, 4))
    served.step()
    short = served.submit(request(5, 3, 4))
    while not short.finished:
        served.step()
    assert not long.completion().ids
    finish(served)
    assert all(sum(lengths) <= 8 for kind, lengths in forwards if kind == "read")
    # between two chunks, the others get a token each
    assert ("read", "read") not in set(pairwise(kind for kind, _ in forwards))


def test_a_later_request_reads_only_what_no_slot_holds(model: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = read_lengths(model, monkeypatch)
    served = engine(model, 4, fast=False)
    first = served.submit(request(40, 1, 20))
    served.step()
    beside = served.submit(Request(ids=(*ids_of(40, 1), *ids_of(9, 7)), max_new_tokens=3, sampling=GREEDY))
    served.step()
    served.step()
    finish(served)
    others = [served.submit(request(30, seed, 3)) for seed in (5, 6)]
    finish(served)
    again = served.submit(Request(ids=(*first.request.ids, *first.completion().ids, 9), max_new_tokens=3, sampling=GREEDY))
    finish(served)
    assert [first.cached_tokens, beside.cached_tokens, again.cached_tokens] == [0, 40, 59]
    assert [lengths for kind, lengths in forwards if kind == "read"] == [[40], [9], [30, 30], [2]]
    for one in (first, beside, *others, again):
        assert_same(one.completion(), engine(model, 1).generate([one.request])[0])


def test_a_cancelled_request_frees_its_slot_before_the_next_forward(model: Dense) -> None:
    served = engine(model, 1, prefill_tokens=4)
    first, second = served.submit(request(30, 1, 9)), served.submit(request(3, 2, 2))
    served.step()
    served.cancel(first)
    served.step()
    assert second.completion().ids and first.completion().finish_reason == "cancelled"
    served.cancel(first)
    assert finish(served) == [second]
    served.cancel(second)
    assert second.completion().finish_reason == "length"


def test_a_twin_goes_on_when_the_one_that_reads_for_it_is_cancelled(model: Dense) -> None:
    served = engine(model, 3, prefill_tokens=4)
    twins = [served.submit(attrs.evolve(request(12, 1, 5, Sampling()), key=(sample,))) for sample in range(3)]
    served.step()
    served.cancel(twins[0])
    served.cancel(twins[2])
    finish(served)
    assert_same(twins[1].completion(), engine(model, 1).generate([twins[1].request])[0])


def test_one_long_request_does_not_take_the_cache_of_others(model: Dense) -> None:
    served = engine(model, 4, slot_tokens=32, cache_tokens=128)
    assert served.context_size == 32
    running = served.submit(request(10, 1, 20))
    served.step()
    with pytest.raises(UsageError, match=r"20 prompt tokens and 20 new ones .* 32 tokens of a slot; .* --local-slot-tokens"):
        served.submit(request(20, 2, 20))
    with pytest.raises(UsageError, match="beside those that run"):
        served.generate([request(20, 2, 20)])
    (beside,) = served.generate([request(6, 3, 4)])
    finish(served)
    assert_same(beside, engine(model, 1).generate([request(6, 3, 4)])[0])
    assert_same(running.completion(), engine(model, 1).generate([running.request])[0])
    assert len(served.generate([request(20, 2, 20)])[0].ids) == 20
    with pytest.raises(UsageError, match=r"slot of 90 tokens does not fit into a cache of 64"):
        engine(model, 4, slot_tokens=90, cache_tokens=64).submit(request())


def test_weights_are_not_changed_under_running_requests(model: Dense) -> None:
    served = engine(model)
    running = served.submit(request())
    with pytest.raises(MMError, match="still running"):
        served.update([], 1)
    served.cancel(running)
    served.update([], 1)


def test_what_one_request_raises_harms_no_other(model: Dense) -> None:
    served = engine(model)

    def fails(index: int, token: int, logprob: float) -> None:
        raise RuntimeError("a reader that is gone")

    first, second = served.submit(request(5, 1), fails), served.submit(request(5, 2))
    assert set(finish(served)) == {first, second}
    assert first.completion().finish_reason == "error" and str(first.error) == "a reader that is gone"
    assert_same(second.completion(), engine(model, 1).generate([second.request])[0])
    with pytest.raises(RuntimeError, match="a reader that is gone"):
        served.generate([request(5, 1), request(5, 2)], fails)
    assert not served.busy


def test_a_forward_that_fails_ends_those_in_the_cache(model: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    served = engine(model, 1, fast=False)
    first, waiting = served.submit(request(5, 1)), served.submit(request(5, 2))
    served.step()
    decode, calls = model.decode, []

    def fails_once(*values: object) -> torch.Tensor:
        calls.append(values)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return decode(*values)

    monkeypatch.setattr(model, "decode", fails_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        served.step()
    assert first.finished and isinstance(first.error, RuntimeError) and not waiting.finished
    assert finish(served) == [first, waiting]
    assert_same(waiting.completion(), engine(model, 1).generate([waiting.request])[0])


def test_on_token_may_cancel_any_request(model: Dense) -> None:
    served = engine(model)
    running: list[Running] = []

    def cancels(index: int, token: int, logprob: float) -> None:
        for one in running:
            served.cancel(one)

    running += [served.submit(request(5, seed), cancels) for seed in range(3)]
    third = served.submit(request(5, 9))
    assert finish(served) == [third]
    assert [one.completion().finish_reason for one in running] == ["cancelled"] * 3


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), budget=st.integers(1, 30))
def test_a_chunk_is_full_and_every_prompt_is_read_in_the_end(lengths: list[int], budget: int) -> None:
    reading = [Placed(Row(0, request(n)), slot, 0) for slot, n in enumerate(lengths)]
    while reading:
        chunk, oldest = chunk_of(reading, budget), reading[0]
        counts = {id(placed): count for placed, count in chunk}
        assert sum(counts.values()) == min(budget, sum(placed.unread for placed in reading))
        assert counts[id(oldest)] >= min(oldest.unread, budget / 2)
        for placed, count in chunk:
            assert 0 < count <= placed.unread
            placed.known += count
        reading = [placed for placed in reading if placed.unread]
