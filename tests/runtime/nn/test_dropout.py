"""Dropout: its masks are functions of a step, a document and a place, and its attention is the formula."""

from __future__ import annotations

import math
from typing import Any

import attrs
import plain_model
import pytest
import torch
from hypothesis import given, settings, strategies as st
from run_files import lines, weights
from sizes import sizes
from torch import Tensor

from mm.core.errors import UsageError
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.architectures.layers import Block
from mm.runtime.nn.attention import dropped_attention, packed_attention
from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.dropout import Dropout, TokenDropout
from mm.runtime.nn.kernels import Kernels
from mm.testing.pytest_plugin import Plugins, Train

CONFIG = DenseConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
WORDS = [{"text": f"number {n} of {n * n}"} for n in range(12)]


def documents(*lengths: int) -> list[Unit]:
    generator = torch.Generator().manual_seed(0)
    return [Unit((Tokens(torch.randint(97, (n,), generator=generator)),)) for n in lengths]


def packed(units: list[Unit], rate: float = 0.3, key: int = 2**62 + 12345) -> Packed:
    return attrs.evolve(pack(units), dropout=Dropout(rate, key))


def tokens_of(batch: Packed) -> TokenDropout:
    found = batch.token_dropout()
    assert found
    return found


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_rate(rate: float) -> None:
    """Within five standard deviations, for the whole, by token and by channel; neighbours are independent."""
    dropout = tokens_of(packed(documents(100, 100, 200), rate))
    dropped = (dropout.apply(torch.ones(400, 500)) == 0).double()
    deviation = math.sqrt(rate * (1 - rate))
    assert dropped.mean().item() == pytest.approx(rate, abs=5 * deviation / math.sqrt(200_000))
    for axis, count in ((0, 400), (1, 500)):
        assert (dropped.mean(axis) - rate).abs().max() <= 5 * deviation / math.sqrt(count)
    for before, after in ((dropped[1:], dropped[:-1]), (dropped[:, 1:], dropped[:, :-1])):
        assert ((before - rate) * (after - rate)).mean().abs() <= 5 * deviation**2 / math.sqrt(199_000)
    assert dropout.apply(torch.full((400, 500), 3.0)).unique().tolist() == pytest.approx(
        [3.0] if rate == 0 else [0.0, 3.0 / (1 - rate)]
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_a_mask_does_not_depend_on_how_a_step_is_cut(lengths: list[int], data: st.DataObject) -> None:
    units = documents(*lengths)
    whole, order = tokens_of(packed(units)).keys_T.split(lengths), data.draw(st.permutations(range(len(units))))
    cut = data.draw(st.integers(0, len(units)))
    for part in (order[:cut], order[cut:]):
        found = tokens_of(packed([units[i] for i in part])).keys_T.split([lengths[i] for i in part])
        assert all(torch.equal(keys, whole[i]) for keys, i in zip(found, part, strict=False) if len(part))


def test_masks_differ_by_step_document_token_and_place() -> None:
    units = documents(40, 40)
    first, other = tokens_of(packed(units)), tokens_of(packed(units, key=7))
    masks = [
        first.apply(torch.ones(80, 64)), other.apply(torch.ones(80, 64)),
        first.at(0).apply(torch.ones(80, 64)), first.at(1).apply(torch.ones(80, 64)),
    ]  # fmt: skip
    every = [mask == 0 for mask in masks] + [(masks[0] == 0).roll(40, 0), (masks[0] == 0).roll(1, 0)]
    for i, one in enumerate(every):
        for two in every[:i]:
            both = (one & two).double().mean().item()
            assert both == pytest.approx(0.09, abs=5 * math.sqrt(0.09 * 0.91 / 5120))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_attention_is_the_formula(heads: tuple[int, int]) -> None:
    """softmax(q k / sqrt(D)), masked and scaled, times v, a document and a head at a time, in float64."""
    lengths, size = [5, 1, 5, 5, 8], 6
    batch = packed(documents(*lengths))
    dropout, generator = tokens_of(batch), torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(sum(lengths), n, size, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (heads[0], heads[1], heads[1])
    )
    found = dropped_attention(q, k, v, batch, dropout)
    start, zeros = 0, 0
    for length in lengths:
        rows = slice(start, start + length)
        kept = dropout.apply_to_pairs(torch.ones(1, heads[0], length, length), start)[0].double()
        for head in range(heads[0]):
            group = head * heads[1] // heads[0]
            scores = (q[rows, head] @ k[rows, group].T / math.sqrt(size)).masked_fill(
                torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf
            )
            expected = (scores.softmax(-1) * kept[head]) @ v[rows, group]
            torch.testing.assert_close(found[rows, head], expected, atol=1e-6, rtol=1e-6)
            zeros += int((kept[head] == 0).sum())
        start += length
    assert zeros
    nothing = dropped_attention(q, k, v, batch, attrs.evolve(dropout, rate=0.0))
    torch.testing.assert_close(nothing, packed_attention(q, k, v, batch))
    found.sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in (q, k, v))


@pytest.mark.parametrize("generation", [2, 3])
def test_a_block_drops_where_minimind_s_generations_do(generation: int) -> None:
    """Probabilities and the output of attention; in generation 2 the feed-forward's output too."""
    model = Dense(attrs.evolve(CONFIG, **(GEN3 if generation == 3 else {})), Kernels())
    block: Any = model.blocks[0]
    assert isinstance(block, Block)
    batch = packed(documents(7, 4))
    x, rotary, dropout = torch.randn(11, 32), model.model.rotary(batch.position_ids), tokens_of(batch)

    def attend(*qkv: Tensor) -> Tensor:
        return dropped_attention(*qkv[:3], batch, dropout.at(0))

    h = x + dropout.at(1).apply(block.self_attn(block.input_layernorm(x), rotary, batch, lambda q, k, v, _: attend(q, k, v)))
    y = block.mlp(block.post_attention_layernorm(h))[0]
    y = dropout.at(2).apply(y) if generation == 2 else y
    torch.testing.assert_close(block(x, rotary, batch, packed_attention, dropout)[0], h + y)


@pytest.mark.parametrize("generation", [2, 3])
def test_a_model_drops_in_training_alone(generation: int) -> None:
    torch.manual_seed(0)
    model = Dense(attrs.evolve(CONFIG, **(GEN3 if generation == 3 else {})), Kernels())
    units = documents(7, 4, 7)
    plain, batch = pack(units), packed(units)
    once = model(batch)[0]
    assert torch.equal(once, model(batch)[0]) and not torch.allclose(once, model(plain)[0])
    assert not torch.allclose(once, model(packed(units, key=1))[0])
    torch.testing.assert_close(torch.cat([model(packed([unit]))[0] for unit in units]), once, atol=1e-5, rtol=1e-5)
    state = torch.get_rng_state()
    model(batch)
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    assert torch.equal(model(batch)[0], model(plain)[0])
    model.train()(packed([]))[0].sum().backward()


TRAIN: dict[str, Any] = {
    **sizes(), "rows": WORDS, "max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-2, "eval_ratio": 0.0, "log_interval": 1,
    "dropout": 0.2,
}  # fmt: skip


def test_dropout_resumes_to_the_bit_and_survives_recomputation(mm_train: Train) -> None:
    whole = mm_train("pretrain", run="whole", **TRAIN)
    mm_train("pretrain", run="cut", stop_after_steps=2, **TRAIN)
    assert weights(mm_train("pretrain", run="cut", resume=True, **TRAIN)) == weights(whole)
    assert weights(mm_train("pretrain", run="again", **TRAIN, activation_checkpointing=True)) == weights(whole)
    without = mm_train("pretrain", run="without", **{**TRAIN, "dropout": 0.0})
    assert weights(without) != weights(whole)
    small = mm_train("pretrain", run="small", **TRAIN, micro_batch_tokens=24)
    for one, other in zip(lines(whole), lines(small), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.long
def test_dropout_is_the_same_in_a_compiled_model(mm_train: Train) -> None:
    eager, compiled = (mm_train("pretrain", run=f"{on}", compile=on, **TRAIN) for on in (False, True))
    assert not [note for note in compiled.manifest["notes"] if "not compiled" in note]
    for one, other in zip(lines(eager), lines(compiled), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_reference_drops_nothing(mm_train: Train) -> None:
    """Before the first update the policy's adapter changes nothing, so the margin is 0 but for the policy's dropout."""
    pair = {"chosen": "yes it is", "rejected": "no"}
    rows = [{"prompt": f"{n}?", **pair} for n in range(6)]
    base = mm_train("pretrain", run="base", **{**TRAIN, "max_steps": 1})
    options = {"from_": base.path, "rows": rows, "adapter": "lora", "max_steps": 1, "log_interval": 1, "eval_ratio": 0.0}
    (plain,), (dropped,) = (lines(mm_train("dpo", run=f"d{rate}", dropout=rate, **options)) for rate in (0.0, 0.3))
    assert plain["margin"] == pytest.approx(0.0, abs=1e-6) and abs(dropped["margin"]) > 1e-4


def test_a_model_without_dropout_refuses_it(mm_plugins: Plugins, mm_train: Train) -> None:
    mm_plugins(plain_model)
    with pytest.raises(UsageError, match=r"--dropout 0\.2: the policy is a \w+, which applies no dropout"):
        mm_train("pretrain", arch="plain", preset="", rows=WORDS, dropout=0.2, max_steps=1)
