"""GGUF files: what the package's own reader finds in them is the model, within the bound of the type; the rest is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
import torch
from gguf_models import KINDS, exported, made, read_gguf
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from mm.converters.gguf.pre_tokenizers import choose, with_pre_tokenizer
from mm.converters.gguf.repacker import Gguf
from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.say import silent
from mm.plugins.architectures.moe import MoEConfig
from mm.plugins.architectures.rotary import inverse_frequencies
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.repacker import Packing
from mm.runtime.models.tensors import named_tensors
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

# the largest error of a number, as a share of the largest one of its block or of the block's span, and of the scale in f16
SHARES = {"q8_0": 1 / 254, "q5_0": 1 / 16, "q4_0": 1 / 8}
SPANS = {"q5_1": 1 / 62, "q4_1": 1 / 30}
RELATIVE = {"fp16": 2**-11, "bf16": 2**-8}
PLAIN = Packing(dtype="fp32", quantise="", say=silent)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def check_tensor(found: np.ndarray, ours: np.ndarray, kind: str) -> None:
    assert found.shape == ours.shape
    if kind in ("", "fp32"):
        assert np.array_equal(found, ours)
    elif kind in RELATIVE:
        assert np.all(np.abs(found - ours) <= RELATIVE[kind] * np.abs(ours) + 2**-24)
    else:
        blocks = ours.reshape(-1, 32)
        width = SHARES[kind] * np.abs(blocks).max(1) if kind in SHARES else SPANS[kind] * np.ptp(blocks, axis=1)
        bound = width + 2**-10 * np.abs(blocks).max(1)
        assert np.all(np.abs(found.reshape(-1, 32) - blocks).max(1) <= bound)


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 2**31), layers=st.integers(1, 3), groups=st.integers(1, 2), head=st.sampled_from([2, 6, 16, 32]),
    tied=st.booleans(), inner=st.sampled_from([32, 40]), rows=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_is_the_model(
    kind: str, seed: int, layers: int, groups: int, head: int, tied: bool, inner: int, rows: int,
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path,
) -> None:  # fmt: skip
    shutil.rmtree(tmp_path)
    tight = kind in ("2-moe", "2-bias")  # their formats have no head_dim
    heads = 64 // head if tight and 64 % head == 0 else 2 * groups
    changes = {
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads // groups,
        "head_dim": 64 // heads if tight else head, "tie_word_embeddings": tied, "intermediate_size": inner,
        "vocab_size": tokenizer.vocab_size + rows,
    }  # fmt: skip
    loaded = made(kind, plugins, tokenizer, seed, **changes)
    values, tensors, types = read_gguf(exported(plugins, loaded, tmp_path / "m.gguf"))
    expected = gguf_models.expected_tensors(loaded)
    assert tensors.keys() == expected.keys()
    for name, ours in expected.items():
        assert types[name] == "F32" and np.array_equal(tensors[name], ours), name
    assert_settings(values, loaded.config, KINDS[kind][2])
    assert values["tokenizer.ggml.tokens"][tokenizer.vocab_size :] == [f"[PAD{tokenizer.vocab_size + i}]" for i in range(rows)]


def assert_settings(values: dict[str, Any], config: Any, name: str) -> None:
    assert values["general.architecture"] == name
    assert values["general.file_type"] == 0
    expected = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": config.head_size,
        "attention.value_length": config.head_size, "rope.dimension_count": config.head_size, "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size, "feed_forward_length": config.ffn_size,
    }  # fmt: skip
    if isinstance(config, MoEConfig):
        expected |= {
            "expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.ffn_size,
        }  # fmt: skip
    if name == "bailingmoe":
        expected |= {"expert_shared_count": 1, "expert_weights_norm": True, "expert_weights_scale": 1}
    assert {key: values[f"{name}.{key}"] for key in expected} == expected
    assert values[f"{name}.attention.layer_norm_rms_epsilon"] == pytest.approx(config.rms_norm_eps)


@pytest.mark.parametrize("kind", [*RELATIVE, *SHARES, *SPANS])
def test_each_type_stays_within_its_bound(kind: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = made("2-moe", plugins, tokenizer)
    option = {"dtype": kind} if kind in RELATIVE else {"quantise": kind}
    values, tensors, types = read_gguf(exported(plugins, loaded, tmp_path / "m.gguf", **option))
    wanted = {"fp16": "F16"}.get(kind, kind.upper())
    assert ("general.quantization_version" in values) == (kind not in RELATIVE)
    for name, ours in gguf_models.expected_tensors(loaded).items():
        if ours.ndim == 1 or "ffn_gate_inp" in name:  # norms and routers
            stored = ""
        elif kind not in RELATIVE and name in ("token_embd.weight", "output.weight"):
            stored = "q8_0"
        else:
            stored = kind
        assert types[name] == {"": "F32", "q8_0": "Q8_0"}.get(stored, wanted), name
        check_tensor(tensors[name], ours, stored)


def test_rows_that_are_no_blocks_are_not_quantised_and_that_is_printed(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded = made("3", plugins, tokenizer, intermediate_size=40)
    said: list[str] = []
    path = exported(plugins, loaded, tmp_path / "m.gguf", quantise="q5_1", say=said.append)
    _, tensors, types = read_gguf(path)
    assert {name for name, kind in types.items() if kind == "F16"} == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    check_tensor(tensors["blk.1.ffn_down.weight"], gguf_models.expected_tensors(loaded)["blk.1.ffn_down.weight"], "fp16")
    assert "blk.*.ffn_down.weight is written in f16: its rows of 40 numbers are not made of blocks of 32" in said


def test_the_tokenizer_in_a_file_is_the_models(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    values, _, _ = read_gguf(exported(plugins, made("2", plugins, tokenizer), tmp_path / "m.gguf"))
    parts = json.loads(tokenizer.backend.to_str())
    names, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert names == [tokenizer.backend.id_to_token(index) for index in range(tokenizer.vocab_size)]
    assert values["tokenizer.ggml.merges"] == [" ".join(merge) for merge in parts["model"]["merges"]]
    assert [names[index] for index, kind in enumerate(kinds) if kind == 3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [names[index] for index, kind in enumerate(kinds) if kind == 4] == [
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    ]  # fmt: skip
    ids = [values[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert not values["tokenizer.ggml.add_bos_token"] and not values["tokenizer.ggml.add_eos_token"]
    template = values["tokenizer.chat_template"]
    assert "endgeneration" not in template and "endgeneration" in tokenizer.template
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "reasoning_content": "hm"}]
    assert tokenizer.with_template(template).render(chat) == tokenizer.render(chat)


def test_the_pre_tokenizer_is_the_one_that_gives_the_same_ids() -> None:
    own = Tokenizer.load()
    said: list[str] = []
    # digits are split off in it: with gpt-2, a run of spaces before one is cut elsewhere
    assert choose(own.backend, said.append) == "starcoder" and not said
    assert with_pre_tokenizer(own.backend, "gpt-2").encode("a  1").ids != own.encode("a  1")
    split_by_han = tiny_tokenizer(600)
    assert choose(split_by_han.backend, said.append) in ("gpt-2", "starcoder")


def test_a_tokenizer_that_llama_cpp_cannot_describe_is_refused(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from tokenizers import normalizers, pre_tokenizers

    lower = Tokenizer(tokenizer._files)
    lower.backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    lower.backend.normalizer = normalizers.Lowercase()
    with pytest.raises(Unsupported, match=r"normalises text \(Lowercase\)"):
        Gguf().pack(folder_of(plugins, lower, tmp_path / "a"), empty(tmp_path / "b"), PLAIN)
    words = type(tokenizer.backend).from_str(Tokenizer.load().backend.to_str())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    with pytest.raises(Unsupported, match=r"no pre-tokenizer of llama\.cpp splits text as its tokenizer does.*such as '"):
        choose(words, silent)


def folder_of(plugins: PluginManager, tokenizer: Tokenizer, out: Path) -> Path:
    """A Llama folder of a random model."""
    loaded = made("2", plugins, tiny_tokenizer())
    folder = exported(plugins, loaded, out, "llama")
    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("3-moe", {"norm_topk_prob": False}, r"qwen3moe always scales .*Use --to qwen3-moe"),
        ("3", {"rope_scaling_factor": 8.0, "rope_type": "llama3"}, "qwen3 has no rotary scaling 'llama3', only linear, yarn"),
        ("2", {"rope_scaling_factor": 2.0, "rope_beta_slow": 2.0}, "llama has rope_beta_slow=1 and does not read the model's, 2"),
        ("2", {"attention_bias": "all"}, "llama is not written with the tensors of attention_bias"),
        ("2", {"mlp_bias": True}, "llama is not written with the tensors of mlp_bias"),
        ("2-moe", {"shared_expert_gate": True}, "bailingmoe is not written with the tensors of shared_expert_gate"),
        ("2-moe", {"shared_expert_intermediate_size": 48}, r"a multiple of 32 \(moe_intermediate_size\), not 48.*qwen2-moe"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_and_nothing_is_written(
    kind: str, changes: dict[str, Any], told: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for out, to in ((tmp_path / "m.gguf", None), (tmp_path / "folder", "ollama")):
        with pytest.raises(Unsupported, match=f"cannot hold this model: .*{told}"):
            exported(plugins, made(kind, plugins, tokenizer, **changes), out, to)
        assert not out.exists()


def test_rotary_scaling_is_written(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    scaled = {"rope_scaling_factor": 4.0, "rope_original_positions": 64}
    linear, _, _ = read_gguf(exported(plugins, made("3", plugins, tokenizer, **scaled, rope_type="linear"), tmp_path / "l.gguf"))
    assert (linear["qwen3.rope.scaling.type"], linear["qwen3.rope.scaling.factor"]) == ("linear", 4)
    loaded = made("2", plugins, tokenizer, **scaled, rope_attention_factor=1.0)
    yarn, _, _ = read_gguf(exported(plugins, loaded, tmp_path / "y.gguf"))
    assert (yarn["llama.rope.scaling.type"], yarn["llama.rope.scaling.original_context_length"]) == ("yarn", 64)
    assert yarn["llama.rope.scaling.attn_factor"] == pytest.approx(1 / (0.1 * np.log(4) + 1))
    loaded = made("2", plugins, tokenizer, **scaled, rope_type="llama3")
    llama3, tensors, _ = read_gguf(exported(plugins, loaded, tmp_path / "3.gguf"))
    assert "llama.rope.scaling.type" not in llama3
    exponents = torch.arange(0, loaded.config.head_size, 2) / loaded.config.head_size
    plain = 1.0 / loaded.config.rope_theta**exponents
    frequencies = plain.numpy() / tensors["rope_freqs.weight"]
    assert np.allclose(frequencies, inverse_frequencies(loaded.config).numpy(), rtol=1e-6)


def test_a_tensor_without_a_place_in_the_file_is_refused_by_name(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = exported(plugins, made("2-moe", plugins, tokenizer), tmp_path / "hf", "qwen2-moe")
    state = load_file(folder / "model.safetensors")
    bias = "model.layers.1.self_attn.q_proj.bias"
    for changed, told in (
        (state | {"model.layers.0.other.weight": torch.ones(2)}, r"tensor model\.layers\.0\.other\.weight is not expected"),
        ({n: t for n, t in state.items() if "1.mlp.experts.3.up" not in n}, r"experts\.3\.up_proj\.weight is missing"),
        (state | {bias: torch.ones_like(state[bias])}, r"1\.self_attn\.q_proj\.bias is not 0 everywhere: bailingmoe has no"),
    ):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=told):
            Gguf().pack(folder, tmp_path, PLAIN)


def test_a_failure_leaves_what_was_there(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = made("2", plugins, tokenizer)
    named_tensors(loaded.model)["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    (tmp_path / "m.gguf").write_text("before")
    for number, setting in enumerate(({"dtype": "fp16"}, {"quantise": "q4_0"})):
        with pytest.raises(UsageError, match=r"blk\.1\.ffn_up\.weight has values that are not finite"):
            exported(plugins, loaded, tmp_path / str(number) / "new.gguf", **setting)
        assert not (tmp_path / str(number) / "new.gguf").exists()
    with pytest.raises(UsageError, match="exists"):
        exported(plugins, loaded, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "before"
    with pytest.raises(UsageError, match=r"--quantise q4_k: gguf does not write it\. It writes: q8_0"):
        exported(plugins, loaded, tmp_path / "k" / "m.gguf", quantise="q4_k")


def test_without_the_package_the_way_to_install_it_is_said(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"--to gguf needs the package gguf: pip install .*\[gguf\]"):
        exported(plugins, made("2", plugins, tokenizer), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_the_record_says_that_it_only_writes(plugins: PluginManager) -> None:
    spec = plugins.get(ConverterSpec, "gguf")
    assert (spec.reads, spec.writes, spec.architecture) == ((), "GGUF", "")
