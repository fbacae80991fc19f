"""The schedules against their formulas, the parameter groups, and the project's Muon beside torch's in a training."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.settings import TrainSettings
from mm.plugins.adapters.lora import LoraConfig
from mm.plugins.adapters.lora.adapter import Lora
from mm.runtime.nn.kernels import Kernels
from mm.runtime.nn.muon import BatchedMuon
from mm.runtime.nn.optimizers import build_optimizers, hidden_matrices, learning_rate
from mm.testing import tiny_model


@given(
    horizon=st.integers(1, 500),
    warmup=st.floats(0, 1),
    floor=st.floats(0, 1),
    decay=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    share=st.floats(0, 1, exclude_max=True),
)
def test_schedules_are_their_formulas(
    horizon: int, warmup: float, floor: float, decay: float, schedule: str, share: float
) -> None:
    settings = TrainSettings(
        learning_rate=3e-3, schedule=schedule, warmup_ratio=warmup, min_learning_rate_ratio=floor, max_steps=horizon,
        decay_ratio=decay,
    )  # fmt: skip
    step, rising = int(share * horizon), round(warmup * horizon)
    if step < rising:
        expected = 3e-3 * (step + 1) / rising
    else:
        x = (step - rising) / max(1, horizon - rising)
        low = 3e-3 * floor
        cosine = low + (3e-3 - low) * (math.cos(math.pi * x) + 1) / 2
        # WSD stays at the peak until `falling` steps are left, or where the warm-up ends if that is later
        falling = min(round(decay * horizon), horizon - rising)
        y = (step - (horizon - falling)) / falling if step >= horizon - falling else 0.0
        expected = {
            "cosine": cosine, "linear": 3e-3 * (1 - x) + low * x, "constant": 3e-3, "wsd": 3e-3 * (1 - y) + low * y,
        }[schedule]  # fmt: skip
    assert learning_rate(step, horizon, settings) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_a_schedule_by_hand() -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_ratio=0.2, min_learning_rate_ratio=0.1, schedule="cosine")
    rates = [learning_rate(step, 10, settings) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate(50, 10, settings) == pytest.approx(0.1)


def test_warm_up_stable_decay_by_hand() -> None:
    settings = TrainSettings(
        learning_rate=1.0, warmup_ratio=0.2, decay_ratio=0.4, min_learning_rate_ratio=0.2, schedule="wsd"
    )
    rates = [learning_rate(step, 10, settings) for step in range(11)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_acts_on_hidden_matrices_alone(optimizer: str) -> None:
    model = tiny_model()
    settings = TrainSettings(optimizer=optimizer, weight_decay=0.3, learning_rate=0.1, adam_beta1=0.8, adam_beta2=0.7)
    optimizers = build_optimizers(model, settings, [])
    decay = {id(p): g["weight_decay"] for o in optimizers for g in o.param_groups for p in g["params"]}
    named = dict(model.named_parameters())
    assert len(decay) == sum(len(g["params"]) for o in optimizers for g in o.param_groups) == len(named)
    decayed = {name for name, p in named.items() if decay[id(p)] == 0.3}
    assert decayed == {name for name in named if "norm" not in name and "embed" not in name and "head" not in name}
    assert decayed and {decay[id(named[n])] for n in named.keys() - decayed} == {0.0}
    adamw = optimizers[-1]
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["betas"] == (0.8, 0.7)
    if optimizer == "muon":
        assert {id(p) for g in optimizers[0].param_groups for p in g["params"]} == {id(named[n]) for n in decayed}
    # with zero gradients only decay moves anything: by lr * decay of the weight
    before = {name: p.detach().clone() for name, p in named.items()}
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    for each in optimizers:
        each.step()
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.1 * 0.3 if name in decayed else 1))


def test_frozen_parameters_get_no_optimizer() -> None:
    model = tiny_model()
    frozen = next(p for p in model.parameters() if p.ndim == 2)
    frozen.requires_grad_(False)
    for kind in ("adamw", "muon"):
        optimizers = build_optimizers(model, TrainSettings(optimizer=kind), [])
        assert all(p is not frozen for o in optimizers for g in o.param_groups for p in g["params"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["dense", "moe"])
def test_a_layer_as_wide_as_the_vocabulary_is_hidden_and_an_embedding_is_not(arch: str, tied: bool) -> None:
    """Also a stack of one expert is, which is as long as an output of one number."""
    spec = PluginManager.discover().get(ArchitectureSpec, arch)
    experts = {"num_experts": 1, "num_experts_per_tok": 1} if arch == "moe" else {}
    config = spec.config(
        vocab_size=64, hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, **experts,
    )  # fmt: skip
    model = spec.load()(config, Kernels())
    hidden = {id(p) for p in hidden_matrices(model)}
    found = {name.removesuffix(".weight") for name, p in model.named_parameters() if id(p) in hidden}
    attention = {f"self_attn.{x}_proj" for x in "qkvo"}
    stems = ("mlp",) if arch == "dense" else ("mlp.experts", "mlp.shared_expert")
    expected = attention | {f"{stem}.{x}_proj" for stem in stems for x in ("gate", "up", "down")}
    assert found == {f"model.layers.0.{name}" for name in expected}
    adapter = Lora("lora", LoraConfig(target=("*_proj", *(["experts.*"] if experts else []))), model)
    adapter.apply()
    assert set(adapter.updates) == found
    model.set_outputs(1)
    assert id(model.lm_head.weight) not in {id(p) for p in hidden_matrices(model)}


def test_a_chip_without_the_fused_kernel_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    adamw = torch.optim.AdamW

    def without(*args: object, fused: bool = False, **options: object) -> torch.optim.Optimizer:
        if fused:
            raise RuntimeError("no such kernel")
        return adamw(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "AdamW", without)
    notes: list[str] = []
    assert not build_optimizers(tiny_model(), TrainSettings(), notes)[0].defaults["fused"]
    assert notes == ["AdamW is not fused: no such kernel"]


def test_muon_learns_as_torchs_does() -> None:
    """A small regression: losses of the two stay together, as rounding in bfloat16 lets them."""
    losses = {}
    for kind in (BatchedMuon, torch.optim.Muon):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(12, 12, generator=generator) / 4) for _ in range(3)]
        inputs, wanted = (torch.randn(64, 12, generator=generator) for _ in range(2))
        optimizer = kind(weights, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        losses[kind] = []
        for _ in range(20):
            hidden = inputs
            for weight in weights:
                hidden = torch.tanh(hidden @ weight)
            loss = (hidden - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[kind].append(loss.item())
    ours, theirs = losses[BatchedMuon], losses[torch.optim.Muon]
    assert ours == pytest.approx(theirs, rel=5e-3)
    assert ours[-1] < 0.95 * ours[0]


def test_settings_reach_the_optimizer() -> None:
    settings = attrs.evolve(TrainSettings(), optimizer="muon", learning_rate=0.7, weight_decay=0.2)
    muon, adamw = build_optimizers(tiny_model(), settings, [])
    assert isinstance(muon, BatchedMuon)
    assert (muon.defaults["lr"], muon.defaults["weight_decay"], adamw.defaults["lr"]) == (0.7, 0.2, 0.7)
