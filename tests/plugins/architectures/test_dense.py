"""The dense model against transformers, its own unpacked self and its declared sizes."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F
from hf_config import rope as rope_arguments
from hypothesis import given, settings, strategies as st

from mm.plugins.architectures.dense import GEN3, PRESETS, DenseConfig, mm_architectures
from mm.plugins.architectures.dense.model import Dense
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.heads import linear_cross_entropy
from mm.runtime.nn.kernels import Kernels

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
GENERATIONS = {"gen2": DenseConfig(**SMALL), "gen3": DenseConfig(**SMALL, **GEN3, head_dim=12)}
YARN = {"rope_scaling_factor": 4.0, "rope_original_positions": 32}
EXTRAS = {
    "plain": {}, "yarn": YARN, "yarn-unscaled": {**YARN, "rope_attention_factor": 1.0}, "untied": {"tie_word_embeddings": False},
}  # fmt: skip


def make(config: DenseConfig, seed: int = 0) -> Dense:
    torch.manual_seed(seed)
    model = Dense(config, Kernels())
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that ignores its weight
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def documents(lengths: list[int], vocab: int = 97, seed: int = 0) -> list[Unit]:
    generator = torch.Generator().manual_seed(seed)
    return [Unit((Tokens(torch.randint(vocab, (n,), generator=generator)),)) for n in lengths]


def reference(config: DenseConfig, model: Dense) -> torch.nn.Module:
    import transformers

    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling_factor:
        rope |= {
            "rope_type": "yarn", "factor": config.rope_scaling_factor,
            "original_max_position_embeddings": config.rope_original_positions,
        }  # fmt: skip
        if config.rope_attention_factor:
            rope["attention_factor"] = config.rope_attention_factor
    kind = "Qwen3" if config.qk_norm else "Llama"
    theirs = getattr(transformers, f"{kind}Config")(
        **SMALL, intermediate_size=config.ffn_size, head_dim=config.head_size, rms_norm_eps=config.rms_norm_eps,
        **rope_arguments(rope), tie_word_embeddings=config.tie_word_embeddings, attn_implementation="sdpa",
    )  # fmt: skip
    network = getattr(transformers, f"{kind}ForCausalLM")(theirs).eval()
    network.load_state_dict(model.state_dict(), strict=True)
    return network


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("generation", GENERATIONS)
def test_logits_equal_transformers(generation: str, extra: dict) -> None:
    config = attrs.evolve(GENERATIONS[generation], **extra)
    model = make(config)
    units = documents([40, 7])
    with torch.no_grad():
        ours, aux = model(pack(units))
        network = reference(config, model)
        theirs = torch.cat([network(u.sequences[0].ids[None]).logits[0] for u in units])
    assert aux is None
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_packed_equals_unpacked(lengths: list[int]) -> None:
    model = make(GENERATIONS["gen3"])
    units = documents(lengths)
    with torch.no_grad():
        packed = model(pack(units))[0]
        alone = torch.cat([model(pack([unit]))[0] for unit in units])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


COUNTS = {"minimind2-small": 25.83, "minimind2": 104.03, "minimind3": 63.91}


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_count(preset: str) -> None:
    config = DenseConfig(**PRESETS[preset])
    with torch.device("meta"):
        model = Dense(config, Kernels())
    assert config.num_parameters() == sum(p.numel() for p in model.parameters())
    if preset in COUNTS:
        assert round(config.num_parameters() / 1e6, 2) == COUNTS[preset]


def test_declaration() -> None:
    (spec,) = mm_architectures()
    assert spec.load() is Dense
    assert spec.config is DenseConfig


def test_flops_grow_with_the_context() -> None:
    config = DenseConfig(**PRESETS["minimind2-small"])
    assert config.flops_per_token(0) == pytest.approx(6 * config.num_parameters(), rel=1e-3)
    assert config.flops_per_token(1024) - config.flops_per_token(0) == 12 * 8 * 512 * 512


@pytest.mark.parametrize(
    "wrong",
    [{"num_key_value_heads": 3}, {"hidden_size": 30}, {"head_dim": 7}, {"norm_rounding": "never"}, {"vocab_size": 0}],
)
def test_impossible_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DenseConfig(**{**SMALL, **wrong})


@pytest.mark.parametrize("generation", GENERATIONS)
def test_autocast_stays_close_and_trains_float32_parameters(generation: str) -> None:
    model = make(GENERATIONS[generation])
    batch = pack(documents([12, 5, 5]))
    head = lambda h, w: linear_cross_entropy(h[batch.target_index], w, batch.targets)  # noqa: E731
    exact, _ = model(batch, head=head)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(batch, head=head)
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=5e-3)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_half_precision_norm_rounds_as_its_generation(generation: str) -> None:
    norm = make(GENERATIONS[generation]).to(torch.bfloat16).model.norm
    x = torch.randn(50, 32, dtype=torch.bfloat16)
    exact = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + norm.eps)
    before, after = norm.weight * exact.bfloat16(), (norm.weight * exact).bfloat16()
    assert not torch.equal(before, after)
    assert torch.equal(norm(x), before if generation == "gen2" else after)


def test_gradients_equal_a_plain_cross_entropy() -> None:
    model = make(GENERATIONS["gen2"])
    batch = pack(documents([9, 14]))
    loss, _ = model(batch, head=lambda h, w: linear_cross_entropy(h[batch.target_index], w, batch.targets))
    found = torch.autograd.grad(loss, list(model.parameters()))
    logits, _ = model(batch)
    plain = F.cross_entropy(logits[batch.target_index], batch.targets, reduction="sum")
    for a, b in zip(found, torch.autograd.grad(plain, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[6, 3], []], ids=["masked", "empty"])
def test_nothing_to_learn_gives_zero(lengths: list[int]) -> None:
    model = make(GENERATIONS["gen3"])
    masked = [
        Unit((Tokens(s.ids, {"learn": torch.zeros(len(s), dtype=torch.bool)}),))
        for u in documents(lengths)
        for s in u.sequences
    ]
    batch = pack(masked)
    loss, _ = model(batch, head=lambda h, w: linear_cross_entropy(h[batch.target_index], w, batch.targets))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_initialisation_follows_the_seed_and_ties() -> None:
    one, two, other = (Dense(GENERATIONS["gen2"], Kernels()) for _ in (torch.manual_seed(s) for s in (1, 1, 2)))
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)
