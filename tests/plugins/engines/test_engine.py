"""The local engine: what it generates, and that nothing but the request decides it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mm.contracts import Completion, Request, Sampling
from mm.core.errors import MMError, UsageError
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.engines.local import LocalConfig, mm_engines
from mm.plugins.engines.local.engine import LocalEngine
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.kernels import Kernels

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
GENERATIONS = {"gen2": DenseConfig(**SIZES), "gen3": DenseConfig(**SIZES, **GEN3)}
SAMPLED = Sampling(temperature=0.8, top_p=0.9, top_k=20)
GREEDY = Sampling(temperature=0)


def make(config: DenseConfig, seed: int = 0) -> Dense:
    torch.manual_seed(seed)
    model = Dense(config, Kernels()).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(5)  # sharp logits: no near ties, and a wrong position shows
    return model


@pytest.fixture(scope="module")
def model() -> Dense:
    return make(GENERATIONS["gen3"])


def engine(model: Dense, slots: int = 4, **options: object) -> LocalEngine:
    return LocalEngine(LocalConfig(slots=slots, **options), model, Backend())


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(61, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def request(length: int = 5, seed: int = 0, new: int = 6, sampling: Sampling = SAMPLED, **values: object) -> Request:
    return Request(ids=prompt(length, seed), max_new_tokens=new, sampling=sampling, key=(1, seed), **values)


def full_logprobs(model: Dense, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(pack([Unit((Tokens(torch.tensor(ids)),))]))[0].log_softmax(-1)


def assert_same(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_greedy_equals_a_loop_over_full_forwards(generation: str, fast: bool) -> None:
    model = make(GENERATIONS[generation])
    requests = [request(n, n, 8, GREEDY) for n in (1, 4, 9, 9, 20)]
    for found, asked in zip(engine(model, 2, fast=fast).generate(requests), requests, strict=True):
        ids, logprobs = list(asked.ids), []
        for _ in range(8):
            row = full_logprobs(model, ids)[-1]
            ids.append(int(row.argmax()))
            logprobs.append(row.max().item())
        assert found.ids == tuple(ids[len(asked.ids) :])
        assert found.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert found.finish_reason == "length"


def test_logprobs_equal_the_full_forward(model: Dense) -> None:
    requests = [request(n, n, 10, Sampling(temperature=1.0, top_p=0.7)) for n in (3, 6, 11)]
    for found, asked in zip(engine(model).generate(requests), requests, strict=True):
        ids = [*asked.ids, *found.ids]
        expected = full_logprobs(model, ids)[len(asked.ids) - 1 : -1].gather(1, torch.tensor(found.ids)[:, None])
        assert found.logprobs == pytest.approx(expected.squeeze(1).tolist(), abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), min_size=1, max_size=9),
    slots=st.integers(1, 6),
    data=st.data(),
)
def test_slots_order_and_company_change_nothing(model: Dense, lengths: list, slots: int, data: st.DataObject) -> None:
    samplings = [SAMPLED, GREEDY, Sampling()]
    stop = tuple(range(0, 61, 9))
    requests = [request(n, i, new, samplings[i % 3], stop=stop) for i, (n, new) in enumerate(lengths)]
    alone = [engine(model, 1).generate([r])[0] for r in requests]
    order = data.draw(st.permutations(range(len(requests))))
    found = engine(model, slots).generate([requests[i] for i in order])
    assert_same(found, [alone[i] for i in order])


def test_samples_of_one_prompt_share_its_reading(model: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda batch, *rest: (read.append(batch.num_tokens), prefill(batch, *rest))[1])
    requests = [attrs.evolve(request(12, 3), key=(1, sample)) for sample in range(7)]
    found = engine(model, 3).generate(requests)
    # the first wave reads the prompt once; a later one takes it from a slot and reads its last token for the logits
    assert read[0] == 12
    assert set(read[1:]) == {1}
    assert len({c.ids for c in found}) > 1
    monkeypatch.undo()
    assert_same(found, [engine(model, 1).generate([r])[0] for r in requests])


def test_a_continued_conversation_reads_only_what_is_new(model: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda batch, *rest: (read.append(batch.num_tokens), prefill(batch, *rest))[1])
    chat = engine(model)
    first = request(10, 1, 5)
    answer = chat.generate([first])[0]
    second = Request(ids=(*first.ids, *answer.ids, *prompt(3, 9)), max_new_tokens=5, sampling=SAMPLED, key=(2,))
    found = chat.generate([second])
    assert read == [10, 4]  # the last token of an answer is drawn, not yet read
    assert_same(found, engine(model).generate([second]))
    other = request(10, 2, 5)
    assert_same(chat.generate([other]), engine(model).generate([other]))


def test_finished_rows_make_room_at_once(model: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    served = engine(model, 2, fast=False)
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda ids, *rest: (widths.append(len(ids)), decode(ids, *rest))[1])
    served.generate([request(4, i, new, GREEDY) for i, new in enumerate((2, 9, 9, 3, 1, 2))])
    # 26 tokens, 6 of them from reading the prompts
    assert sum(widths) == 20
    assert widths.count(2) >= 8
    assert all(widths)


def test_stop_and_length(model: Dense) -> None:
    free = engine(model).generate([request(6, 4, 12)])[0]
    third = free.ids[2]
    found = engine(model).generate([request(6, 4, 12, stop=(third, 999))])[0]
    assert found.ids == free.ids[: free.ids.index(third) + 1]
    assert found.finish_reason == "stop"
    assert free.finish_reason == "length"
    assert engine(model).generate([request(new=0)])[0] == Completion(ids=(), logprobs=(), finish_reason="length")
    assert engine(model).generate([]) == []


def test_tokens_are_told_as_they_come(model: Dense) -> None:
    told: list[tuple[int, int, float]] = []
    found = engine(model, 2).generate([request(5, i) for i in range(3)], on_token=lambda *event: told.append(event))
    for index, completion in enumerate(found):
        assert [(i, p) for n, i, p in told if n == index] == list(zip(completion.ids, completion.logprobs, strict=True))


def test_the_key_decides_the_draws(model: Dense) -> None:
    base = request(5, 0, 12, Sampling(temperature=1.5))
    a, b, c = engine(model).generate([base, attrs.evolve(base, key=(1, 1)), base])
    assert_same([a], [c])
    assert a.ids != b.ids


def test_what_does_not_fit_is_refused(model: Dense) -> None:
    with pytest.raises(UsageError, match=r"Request 1: 60 prompt tokens and 5 new ones .* 64 positions"):
        engine(model).generate([request(59, 0, 5), request(60, 0, 5)])
    with pytest.raises(UsageError, match="empty prompt"):
        engine(model).generate([Request(ids=(), max_new_tokens=3)])
    with pytest.raises(UsageError, match="top_p"):
        engine(model).generate([request(sampling=Sampling(top_p=0))])
    with pytest.raises(UsageError, match="max_new_tokens"):
        engine(model).generate([request(new=-1)])


def test_the_cache_is_bounded(model: Dense) -> None:
    served = engine(model, 8, cache_tokens=600)
    served.generate([request(5, i) for i in range(5)])
    cache = served._scheduler.open(1, 1).cache
    assert cache.slots * cache.capacity <= 600


def test_update_takes_new_weights_and_forgets_old_caches(model: Dense) -> None:
    other = make(GENERATIONS["gen3"], seed=1)
    served = engine(make(GENERATIONS["gen3"]))
    asked = [request(20, 1, 8)]
    assert_same(served.generate(asked), engine(model).generate(asked))
    served.update(other.state_dict().items(), 3)
    assert served.version == 3
    assert_same(served.generate(asked), engine(other).generate(asked))
    with pytest.raises(MMError, match="no tensor 'nonsense'"):
        served.update([("nonsense", torch.zeros(1))], 4)


def test_an_error_while_generating_leaves_nothing_behind(model: Dense) -> None:
    served = engine(model)

    def interrupt(index: int, token: int, logprob: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served.generate([request(20, 1)], on_token=interrupt)
    assert_same(served.generate([request(20, 1)]), engine(model).generate([request(20, 1)]))


def test_a_shared_model_still_trains_after_generation() -> None:
    model = make(GENERATIONS["gen3"]).requires_grad_(True)
    engine(model).generate([request()])
    model(pack([Unit((Tokens(torch.arange(8)),))]))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_adapted_projection_is_not_skipped(model: Dense) -> None:
    changed = make(GENERATIONS["gen3"])
    projection = changed.model.layers[0].self_attn.q_proj
    projection.register_forward_hook(lambda module, inputs, output: 2 * output)
    asked = [request(6, 2, 8, GREEDY)]
    assert_same(engine(changed).generate(asked), engine(changed, fast=False).generate(asked))
    assert engine(changed).generate(asked)[0].logprobs != engine(model).generate(asked)[0].logprobs


def test_half_precision_stays_close_to_float32() -> None:
    exact, half = make(GENERATIONS["gen3"]), make(GENERATIONS["gen3"]).to(torch.bfloat16)
    for parameter in half.parameters():
        parameter.div_(5)
    for parameter in exact.parameters():
        parameter.div_(5)
    asked = [request(n, n, 1, GREEDY) for n in range(3, 9)]
    pairs = zip(engine(exact).generate(asked), engine(half).generate(asked), strict=True)
    assert all(abs(a.logprobs[0] - b.logprobs[0]) < 0.1 for a, b in pairs)


def test_declaration() -> None:
    (spec,) = mm_engines()
    assert spec.load() is LocalEngine
    assert spec.config is LocalConfig
