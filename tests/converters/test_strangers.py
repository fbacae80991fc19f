"""Folders that transformers has written with models of a stranger's: read exactly and written back bit for bit, or refused with
the key that does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_config import rope
from safetensors.torch import load_file, save_file
from test_converters import edit_config, shake
from torch import Tensor

from mm.contracts import Request, Sampling
from mm.core.errors import CheckpointError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.workspace import Workspace
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.runtime.devices.backend import Backend
from mm.runtime.models.convert import convert
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.folder import load_model_folder
from mm.runtime.models.hf_files import read_tensors
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 128,
}  # fmt: skip
WINDOW, SLIDING = {"use_sliding_window": True}, "sliding_attention"
EXPERTS = {
    "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
    "decoder_sparse_step": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# name -> (class, settings, rotary scaling, type of the stored weights, largest file)
STRANGERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    "llama-3": ("Llama", {"num_key_value_heads": 1}, LLAMA3, "bfloat16", "20KB"),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}, {}, "float32", "5GB"),
    "llama-mlp-bias": ("Llama", {"mlp_bias": True, "tie_word_embeddings": True}, LINEAR, "float16", "5GB"),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, {}, "bfloat16", "20KB"),
    "qwen2-window": ("Qwen2", {**WINDOW, "sliding_window": 128, "max_window_layers": 1}, YARN, "float32", "5GB"),
    "qwen2-full-layers": ("Qwen2", {**WINDOW, "sliding_window": 8, "max_window_layers": 3}, {}, "float16", "5GB"),
    "qwen3-bias": ("Qwen3", {"attention_bias": True, "head_dim": 12}, YARN, "float32", "20KB"),
    "qwen2-moe": ("Qwen2Moe", {**EXPERTS, "norm_topk_prob": False}, {}, "bfloat16", "20KB"),
    "qwen2-moe-tied": ("Qwen2Moe", {**EXPERTS, "norm_topk_prob": True, "tie_word_embeddings": True}, YARN, "float32", "5GB"),
    "qwen3-moe-bias": ("Qwen3Moe", {**EXPERTS, "attention_bias": True, "head_dim": 12}, {}, "float16", "5GB"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def written(folder: Path, name: str, tokenizer: Tokenizer) -> Path:
    """A folder of the class's own `save_pretrained`; no weight is constant, biases and gates included."""
    kind, settings, scaling, dtype, size = STRANGERS[name]
    torch.manual_seed(4)
    made = {**SIZES, "vocab_size": tokenizer.vocab_size, **settings}
    made |= rope({"rope_type": "default", "rope_theta": 5e4, **scaling})
    network = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**made))
    shake(network)
    network.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=size)
    tokenizer.save(folder)
    return folder


def ids(vocabulary: int, count: int = 40) -> list[int]:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(5)).tolist()


def theirs(folder: Path) -> Tensor:
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return network(torch.tensor([ids(network.config.vocab_size)])).logits[0]


def ours(model: torch.nn.Module, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(pack([Unit((Tokens(torch.tensor(tokens)),))]))[0]


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_read_exactly_and_written_back(
    name: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written(tmp_path / "theirs", name, tokenizer)
    if STRANGERS[name][-1] == "20KB":
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    loaded, expected = load_model_folder(plugins, folder, Backend()), theirs(folder)
    assert sum(p.numel() for p in loaded.model.parameters()) == loaded.config.num_parameters()
    assert_equal(ours(loaded.model, ids(loaded.config.vocab_size)), expected)
    own = convert(plugins, str(folder), tmp_path / "own", workspace=Workspace(tmp_path))
    dtype = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[STRANGERS[name][3]]
    back = convert(plugins, str(own), tmp_path / "back", dtype=dtype, workspace=Workspace(tmp_path))
    assert json.loads((back / "config.json").read_text())["architectures"] == [f"{STRANGERS[name][0]}ForCausalLM"]
    first, second = read_tensors(folder), read_tensors(back)
    assert {n: t for n, t in first.items() if n not in second}.keys() <= {"lm_head.weight"}
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in second)
    assert_equal(theirs(back), expected)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["llama-biases", "qwen2", "qwen3-bias", "qwen2-moe"])
def test_the_engine_with_its_cache_draws_what_full_forwards_do(
    name: str, fast: bool, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = load_model_folder(plugins, written(tmp_path / "theirs", name, tokenizer), Backend()).model
    asked = [Request(ids=tuple(ids(60, n)), max_new_tokens=8, sampling=Sampling(temperature=0), key=(0, n)) for n in (1, 7, 12)]
    engine = LocalEngine(LocalConfig(slots=2, fast=fast), model, Backend())
    for request, found in zip(asked, engine.generate(asked), strict=True):
        whole, logprobs = list(request.ids), []
        for _ in range(8):
            row = ours(model, whole)[-1].log_softmax(-1)
            whole.append(int(row.argmax()))
            logprobs.append(float(row.max()))
        assert found.ids == tuple(whole[len(request.ids) :])
        assert found.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 64}, r"use_sliding_window is True: layers 1 to 2 attend to the last 64 tokens \(sliding_window\)"),
        ({"sliding_window": 64}, "with max_position_embeddings 64 in config.json"),
        ({"layer_types": [SLIDING, "full_attention", SLIDING], "sliding_window": 8}, "layers 0, 2 attend"),
        ({"sliding_window": "wide"}, "sliding_window is 'wide'; expected a number"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types has 'linear_attention'"),
        ({"use_sliding_window": False, "layer_types": [SLIDING] * 3}, "no window is in use"),
    ],
)
def test_windows_that_would_count_are_refused(
    changes: dict[str, Any], message: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written(tmp_path / "theirs", "qwen2-window", tokenizer)
    edit_config(folder, **{"layer_types": None, **changes})
    with pytest.raises(Unsupported, match=message):
        load_model_folder(plugins, folder, Backend())


def test_a_window_is_exact_up_to_its_length(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The cure that the refusal names."""
    folder = written(tmp_path / "theirs", "qwen2-window", tokenizer)
    edit_config(folder, sliding_window=40, max_position_embeddings=40)
    loaded = load_model_folder(plugins, folder, Backend())
    assert_equal(ours(loaded.model, ids(loaded.config.vocab_size)), theirs(folder))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen2", {"mlp_bias": True}, "mlp_bias is True"),
        ("qwen3-bias", {"attention_bias": "yes"}, "attention_bias is 'yes'"),
        ("qwen2-moe", {"qkv_bias": False}, "qkv_bias is False"),
        ("qwen2-moe", {"shared_expert_gate": 3}, "'shared_expert_gate' must be"),
        ("qwen3-moe-bias", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    ],
)
def test_what_does_not_fit_is_named(
    kind: str, changes: dict[str, Any], message: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written(tmp_path / "theirs", kind, tokenizer)
    edit_config(folder, **changes)
    with pytest.raises(Unsupported, match=message):
        load_model_folder(plugins, folder, Backend())


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [("llama-3", "model.layers.1.self_attn.o_proj.bias"), ("qwen2", "model.layers.1.self_attn.o_proj.bias"),
     ("llama-3", "model.layers.2.mlp.up_proj.bias")],
)  # fmt: skip
def test_a_bias_that_the_config_does_not_say_is_not_lost(
    kind: str, tensor: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written(tmp_path / "theirs", kind, tokenizer)
    file = next(path for path in sorted(folder.glob("model-*.safetensors")))
    save_file({**load_file(file), tensor: torch.zeros(32)}, file)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**listed["weight_map"], tensor: file.name}}))
    with pytest.raises(CheckpointError, match=f"tensor {tensor} is not expected"):
        load_model_folder(plugins, folder, Backend())


def test_a_folder_of_an_older_version_has_neither_gate_nor_biases(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Before, gate and biases were always zeros, and config.json had `attention_bias` false and no `shared_expert_gate`."""
    from mm.plugins.architectures.moe import MoEConfig
    from mm.runtime.models.folder import new_model

    config = MoEConfig(**SIZES, num_experts=3)
    loaded = new_model(plugins, "moe", config, tokenizer, Backend())
    plugins.load(ConverterSpec, "qwen2-moe")().write(loaded, tmp_path / "hf")
    edit_config(tmp_path / "hf", shared_expert_gate=...)
    back = load_model_folder(plugins, tmp_path / "hf", Backend())
    assert (back.config.attention_bias, back.config.shared_expert_gate) == ("none", False)
    edit_config(tmp_path / "hf", attention_bias=...)
    gated = load_model_folder(plugins, tmp_path / "hf", Backend())
    assert (gated.config.attention_bias, gated.config.shared_expert_gate) == ("qkv", True)
    tokens = ids(tokenizer.vocab_size)
    assert torch.equal(ours(back.model, tokens), ours(loaded.model, tokens))
    assert_equal(ours(gated.model, tokens), ours(loaded.model, tokens))
