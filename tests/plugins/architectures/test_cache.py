"""Cached decoding equals the full forward, however the slots were filled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.plugins.architectures.cache import KVCache
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.kernels import Kernels

CONFIG = DenseConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, **GEN3,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Dense:
    torch.manual_seed(0)
    made = Dense(CONFIG, Kernels())
    for parameter in made.parameters():
        parameter.data.mul_(5)  # sharper logits: a wrong position then shows
    return made


def tokens(length: int, seed: int) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def packed(sequences: list[Tensor]) -> Packed:
    return pack([Unit((Tokens(ids),)) for ids in sequences])


def full(model: Dense, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(packed([ids]))[0]


def assert_close(a: Tensor, b: Tensor) -> None:
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def decode_all(model: Dense, cache: KVCache, rest: dict[int, Tensor]) -> dict[int, list[Tensor]]:
    """Feed each slot its tokens, dropping a slot when it has none left."""
    found: dict[int, list[Tensor]] = {slot: [] for slot in rest}
    for step in range(max(map(len, rest.values()))):
        active = [slot for slot, ids in rest.items() if step < len(ids)]
        logits_AV = model.decode(torch.stack([rest[slot][step] for slot in active]), active, cache)
        for slot, logits_V in zip(active, logits_AV, strict=True):
            found[slot].append(logits_V)
    return found


@settings(max_examples=15, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=5),
    order=st.permutations(range(5)),
)
def test_prefill_then_decode(model: Dense, pairs: list[tuple[int, int]], order: list[int]) -> None:
    slots = order[: len(pairs)]
    documents = [tokens(a + b, i) for i, (a, b) in enumerate(pairs)]
    cache = model.new_cache(5, 32)
    first = model.prefill(packed([d[:a] for d, (a, _) in zip(documents, pairs, strict=True)]), slots, cache)
    rest = {slot: d[a:] for slot, d, (a, _) in zip(slots, documents, pairs, strict=True)}
    later = decode_all(model, cache, rest)
    for slot, document, (a, _), start in zip(slots, documents, pairs, first, strict=True):
        assert_close(torch.stack([start, *later[slot]]), full(model, document)[a - 1 :])
    assert [cache.lengths[slot] for slot in slots] == [len(d) for d in documents]
    assert cache.positions_S.tolist() == cache.lengths


def test_continuing_slots_beside_a_fresh_one(model: Dense) -> None:
    documents = [tokens(n, n) for n in (20, 15, 9)]
    cache = model.new_cache(4, 24)
    model.prefill(packed([documents[0][:6], documents[1][:11]]), [3, 1], cache)
    with torch.no_grad():
        rest = packed([documents[0][6:], documents[1][11:], documents[2]])
        logits_TV, _ = model(rest, cache=cache.at([3, 1, 0]))
    for found, document, start in zip(logits_TV.split(rest.lengths), documents, (6, 11, 0), strict=True):
        assert_close(found, full(model, document)[start:])
    last = tokens(1, 99)
    assert_close(model.decode(last, [1], cache)[0], full(model, torch.cat((documents[1], last)))[-1])


def test_copied_slots_diverge(model: Dense) -> None:
    prompt = tokens(7, 1)
    cache = model.new_cache(4, 16)
    model.prefill(packed([prompt]), [2], cache)
    cache.copy(2, [0, 3])
    rest = {slot: tokens(4, slot) for slot in (0, 2, 3)}
    for slot, found in decode_all(model, cache, rest).items():
        assert_close(torch.stack(found), full(model, torch.cat((prompt, rest[slot])))[7:])


def test_a_slot_is_used_again_after_truncation(model: Dense) -> None:
    cache = model.new_cache(2, 16)
    old, new = tokens(12, 1), tokens(5, 2)
    model.prefill(packed([old]), [0], cache)
    cache.truncate([0], 3)
    ids = torch.cat((old[:3], new))
    assert_close(model.prefill(packed([new]), [0], cache)[0], full(model, ids)[-1])
    cache.clear([0])
    assert_close(model.prefill(packed([new]), [0], cache)[0], full(model, new)[-1])


def test_bf16_decodes_close_to_its_own_forward(model: Dense) -> None:
    half = Dense(CONFIG, Kernels())
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    ids = tokens(10, 5)
    cache = half.new_cache(1, 16)
    assert cache.keys[0].dtype == torch.bfloat16
    half.prefill(packed([ids[:9]]), [0], cache)
    expected = full(half, ids)[-1]
    found = half.decode(ids[9:], [0], cache)[0]
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_what_does_not_fit_is_refused_before_anything_is_stored(model: Dense) -> None:
    cache = model.new_cache(2, 8)
    with pytest.raises(ValueError, match="cannot add 9"):
        model.prefill(packed([tokens(9, 0)]), [0], cache)
    model.prefill(packed([tokens(8, 0)]), [0], cache)
    with pytest.raises(ValueError, match="slot 0 holds 8 of 8"):
        model.decode(tokens(1, 0), [0], cache)
    with pytest.raises(ValueError, match="slot of its own"):
        cache.at([1, 1])
    with pytest.raises(ValueError, match="holds fewer"):
        cache.truncate([1], 2)
    assert cache.lengths == [8, 0]
    assert cache.store.nbytes == 2 * 2 * 2 * 2 * 8 * 8 * 4
