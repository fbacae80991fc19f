"""A model of any size: what an export holds is the model, for us bit for bit, and for transformers in every logit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_config import VERSION_5
from hypothesis import assume, given, settings, strategies as st
from test_converters import shake

from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.devices.backend import Backend
from mm.runtime.models.accepting import able_converters
from mm.runtime.models.folder import load_model_folder, new_model
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.testing import tiny_tokenizer

LENGTH = 24
# its grouped products of experts take rows of 16 bytes only
EAGER = {"attn_implementation": "eager", **({"experts_implementation": "eager"} if VERSION_5 else {})}
TOKENIZER = tiny_tokenizer()
SCALINGS: tuple[dict[str, Any], ...] = (
    {}, {}, {"rope_type": "linear"}, {"rope_type": "llama3", "rope_original_positions": 16},
    {"rope_type": "yarn", "rope_original_positions": 32},
    {"rope_type": "yarn", "rope_original_positions": 8, "rope_beta_fast": 16.0, "rope_attention_factor": 1.0},
)  # fmt: skip


@st.composite
def dense(draw: st.DrawFn, third: bool) -> dict[str, Any]:
    """The settings of a decoder that a format holds."""
    keys, group, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 6, 8]))
    heads, scaling = keys * group, draw(st.sampled_from(SCALINGS))
    # only these layouts have a head size of its own
    free = draw(st.booleans())
    return {
        "hidden_size": draw(st.integers(1, 5)) * 2 * heads if free else heads * size, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": size, "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 40)), "tie_word_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.floats(100, 1e7)), "max_position_embeddings": 2 * LENGTH, **(GEN3 if third else {}),
        **({**scaling, "rope_scaling_factor": draw(st.sampled_from([1.5, 4.0]))} if scaling else {}),
    }  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> DenseConfig:
    """Any config of both architectures and generations that one of the formats holds."""
    third, experts = draw(st.booleans()), draw(st.booleans())
    made = draw(dense(third))
    bias = draw(st.sampled_from(["none", "all"] if third else ["none", "qkv"] if experts else ["none", "qkv", "all"]))
    if not third and (experts or bias == "qkv"):
        made["hidden_size"] = made["num_attention_heads"] * made["head_dim"]
    # a norm over fewer values divides by what may be nearly zero, and magnifies the rounding of either side
    assume(made["hidden_size"] >= 8)
    if not experts:
        return DenseConfig(**made, attention_bias=bias, mlp_bias=not third and bias != "qkv" and draw(st.booleans()))
    count = draw(st.integers(1, 6))
    return MoEConfig(
        **made, attention_bias=bias, num_experts=count, num_experts_per_tok=draw(st.integers(1, count)),
        norm_topk_prob=draw(st.booleans()), router_aux_loss_coef=draw(st.floats(0, 1)),
        shared_expert_intermediate_size=0 if third else draw(st.integers(1, 30)),
        shared_expert_gate=not third and draw(st.booleans()), router_aux_loss_scope="micro-batch" if third else "document",
    )  # fmt: skip


def check(plugins: PluginManager, config: DenseConfig, seed: int) -> None:
    torch.manual_seed(seed)
    name = "moe" if isinstance(config, MoEConfig) else "dense"
    loaded = new_model(plugins, name, config, TOKENIZER, Backend())
    shake(loaded.model)
    assert sum(p.numel() for p in loaded.model.parameters()) == loaded.config.num_parameters()
    able, _ = able_converters(plugins, loaded)
    assert len(able) == 1
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = Path(temporary) / "hf"
        plugins.load(ConverterSpec, able[0])().write(loaded, folder)
        back = load_model_folder(plugins, folder, Backend())
        ours, read = named_tensors(loaded.model), named_tensors(back.model)
        assert ours.keys() == read.keys() and all(torch.equal(ours[tensor], read[tensor]) for tensor in ours)
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **EAGER)
        ids = torch.randint(TOKENIZER.vocab_size, (LENGTH,))
        batch = pack([Unit((Tokens(ids),))])
        own, theirs = loaded.model(batch)[0], network.eval()(ids[None]).logits[0]
        rounding = float((own - loaded.model.double()(batch)[0]).abs().max())
    assert back.config == loaded.config
    assert float((own - theirs).abs().max()) <= max(1e-5 * max(1.0, float(own.abs().max())), 4 * rounding)


@settings(max_examples=20, deadline=None)
@given(config=configs(), seed=st.integers(0, 2**31))
def test_an_export_is_the_model(config: DenseConfig, seed: int, installed: PluginManager) -> None:
    check(installed, config, seed)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(config=configs(), seed=st.integers(0, 2**31))
def test_many_exports_are_the_model(config: DenseConfig, seed: int, installed: PluginManager) -> None:
    check(installed, config, seed)
