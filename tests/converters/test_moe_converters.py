"""Qwen2-MoE and Qwen3-MoE folders for and from transformers: equal logits; what cannot be held is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hf_config import rope
from safetensors.torch import load_file, save_file
from test_converters import edit_config, our_logits, shake, their_logits

from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import GEN3
from mm.plugins.architectures.moe import GEN3_EXPERTS, MoEConfig
from mm.runtime.devices.backend import Backend
from mm.runtime.models.convert import convert
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.folder import LoadedModel, load_model_folder, new_model, save_model_folder
from mm.runtime.models.tensors import named_tensors
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "intermediate_size": 24, "num_experts": 5,
}  # fmt: skip
OTHER = {
    "rope_scaling_factor": 4.0, "rope_original_positions": 32, "tie_word_embeddings": False, "norm_topk_prob": False,
    "num_experts_per_tok": 3,
}  # fmt: skip
SHAPES = {
    "qwen2-moe": MoEConfig(**SMALL),
    "qwen2-moe:other": MoEConfig(**SMALL, **OTHER, shared_expert_intermediate_size=40),
    "qwen2-moe:gate": MoEConfig(**SMALL, attention_bias="qkv", shared_expert_gate=True),
    "qwen3-moe": MoEConfig(**SMALL, **GEN3, **GEN3_EXPERTS),
    "qwen3-moe:other": MoEConfig(**SMALL, **GEN3, **{**GEN3_EXPERTS, **OTHER}, head_dim=12),
}
CLASSES = {"qwen2-moe": "Qwen2Moe", "qwen3-moe": "Qwen3Moe"}
shapes = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def make(plugins: PluginManager, config: MoEConfig, tokenizer: Tokenizer) -> LoadedModel:
    torch.manual_seed(0)
    loaded = new_model(plugins, "moe", config, tokenizer, Backend())
    shake(loaded.model)
    return loaded


@shapes
def test_export_gives_transformers_the_same_logits(
    shape: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded, kind, out = make(plugins, SHAPES[shape], tokenizer), shape.partition(":")[0], tmp_path / "hf"
    (tmp_path / "own").mkdir()
    save_model_folder(tmp_path / "own", loaded)
    chosen: list[str] = []
    convert(plugins, str(tmp_path / "own"), out, workspace=Workspace(tmp_path), say=chosen.append)
    said = [line for line in chosen if not line.startswith("head size ")]
    assert said == [f"--to {kind}: the only format that can hold this model", "read back bit for bit"]
    torch.testing.assert_close(their_logits(out), our_logits(loaded.model), atol=1e-5, rtol=1e-5)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_id
    back = load_model_folder(plugins, out, Backend())
    unsaid = {name: getattr(loaded.config, name) for name in ("head_dim", "norm_rounding", "router_aux_loss_scope")}
    unsaid["shared_expert_intermediate_size"] = loaded.config.shared_expert_intermediate_size
    assert attrs.evolve(back.config, **unsaid) == loaded.config
    assert back.config.shared_ffn_size == loaded.config.shared_ffn_size
    ours, theirs = named_tensors(loaded.model), named_tensors(back.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_the_shared_expert_passes_a_gate_of_one_half(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = make(plugins, SHAPES["qwen2-moe"], tokenizer)
    plugins.load(ConverterSpec, "qwen2-moe")().write(loaded, tmp_path / "hf")
    state, prefix = load_file(tmp_path / "hf" / "model.safetensors"), "model.layers.1."
    ours = loaded.model.blocks[1].mlp
    assert torch.equal(state[prefix + "mlp.shared_expert.down_proj.weight"], 2 * ours.shared_expert.down_proj.weight)
    assert torch.equal(state[prefix + "mlp.experts.3.up_proj.weight"], ours.experts.up_proj[3])
    assert torch.equal(state[prefix + "mlp.shared_expert_gate.weight"], torch.zeros(1, 32))
    biases = {name: tuple(t.shape) for name, t in state.items() if name.endswith("bias") and not t.any()}
    assert {n: s for n, s in biases.items() if n.startswith(prefix)} == {
        f"{prefix}self_attn.{name}_proj.bias": (size,) for name, size in (("q", 32), ("k", 16), ("v", 16))
    }
    for dtype in (torch.bfloat16, torch.float16):
        plugins.load(ConverterSpec, "qwen2-moe")().write(loaded, tmp_path / str(dtype), dtype)
        back = named_tensors(load_model_folder(plugins, tmp_path / str(dtype), Backend()).model)
        assert all(torch.equal(back[name], t.to(dtype).float()) for name, t in named_tensors(loaded.model).items())


def test_half_of_what_a_foreign_file_holds_is_exact(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The shared expert's last matrix is halved on the way in; half of a small float16 may be none."""
    folder, name = tmp_path / "hf", "model.layers.0.mlp.shared_expert.down_proj.weight"
    plugins.load(ConverterSpec, "qwen2-moe")().write(make(plugins, SHAPES["qwen2-moe"], tokenizer), folder, torch.float16)
    state = load_file(folder / "model.safetensors")
    odd = torch.arange(1, 2 * state[name].numel(), 2, dtype=torch.int16).view(torch.float16)  # odd last bits, from the smallest
    save_file({**state, name: odd.view_as(state[name])}, folder / "model.safetensors", {"format": "pt"})
    back = load_model_folder(plugins, folder, Backend())
    assert torch.equal(back.model.blocks[0].mlp.shared_expert.down_proj.weight.double() * 2, odd.view_as(state[name]).double())
    convert(plugins, str(folder), tmp_path / "again", "qwen2-moe", "fp16")
    assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")[name], odd.view_as(state[name]))


def written_by_transformers(folder: Path, name: str, tokenizer: Tokenizer, zero: bool = True, **changes: Any) -> Path:
    import transformers

    sizes = {**SMALL, "vocab_size": tokenizer.vocab_size, "moe_intermediate_size": 24, "num_experts_per_tok": 3}
    sizes |= {"intermediate_size": 48, **changes}
    if name == "qwen2-moe":
        sizes["shared_expert_intermediate_size"] = 40
    config = getattr(transformers, f"{CLASSES[name]}Config")(**sizes, **rope({"rope_type": "default", "rope_theta": 5e4}))
    torch.manual_seed(1)
    network = getattr(transformers, f"{CLASSES[name]}ForCausalLM")(config)
    shake(network)
    for parameter_name, parameter in network.named_parameters():
        if zero and (parameter_name.endswith("bias") or "shared_expert_gate" in parameter_name):
            torch.nn.init.zeros_(parameter)
    network.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("extra", [{}, {"norm_topk_prob": True, "tie_word_embeddings": True}])
def test_import_of_what_transformers_wrote(
    name: str, extra: dict[str, Any], plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written_by_transformers(tmp_path / "hf", name, tokenizer, **extra)
    loaded = load_model_folder(plugins, folder, Backend())
    torch.testing.assert_close(our_logits(loaded.model), their_logits(folder), atol=1e-5, rtol=1e-5)
    assert (loaded.config.ffn_size, loaded.config.rope_theta) == (24, 5e4)
    assert loaded.config.norm_topk_prob == extra.get("norm_topk_prob", False)


@pytest.mark.parametrize("name", CLASSES)
def test_a_config_may_leave_out_what_has_a_default(name: str, plugins: PluginManager, tokenizer: Tokenizer) -> None:
    import transformers

    config = getattr(transformers, f"{CLASSES[name]}Config")()
    sizes = {**SMALL, "vocab_size": 320, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    ours = plugins.load(ConverterSpec, name)().read_config({**sizes, "num_experts": 60})
    for option in ("num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, option) == getattr(config, option)


def test_gates_and_biases_that_are_said_to_be_none_must_be_zero(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = written_by_transformers(tmp_path / "hf", "qwen2-moe", tokenizer, zero=False)
    edit_config(folder, attention_bias=False)
    with pytest.raises(CheckpointError, match=r"_proj\.bias is not 0 everywhere: .* \(attention_bias: false\); remove"):
        load_model_folder(plugins, folder, Backend())
    edit_config(folder, attention_bias=..., shared_expert_gate=False)
    with pytest.raises(CheckpointError, match=r"shared_expert_gate\.weight is not 0 everywhere: .* \(shared_expert_gate: false"):
        load_model_folder(plugins, folder, Backend())
    edit_config(folder, shared_expert_gate=...)
    state = load_file(folder / "model.safetensors")
    del state["model.layers.0.mlp.experts.4.up_proj.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.0\.mlp\.experts\.4\.up_proj\.weight is missing"):
        load_model_folder(plugins, folder, Backend())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen2-moe", {"qkv_bias": False}, "qkv_bias is False"),
        ("qwen2-moe", {"shared_expert_intermediate_size": ...}, "shared_expert_intermediate_size is missing"),
        ("qwen2-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("qwen2-moe", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, "layers 1 attend to the last 9"),
        ("qwen3-moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\]"),
        ("qwen3-moe", {"mlp_bias": True}, "mlp_bias is True"),
        ("qwen3-moe", {"num_experts": ...}, "num_experts is missing"),
        ("qwen3-moe", {"moe_intermediate_size": ...}, "moe_intermediate_size is missing"),
        ("qwen3-moe", {"num_experts_per_tok": 9}, "'num_experts_per_tok' must be at most num_experts=5"),
    ],
)
def test_a_config_that_ours_cannot_hold(
    name: str, changes: dict[str, Any], message: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    converter = plugins.load(ConverterSpec, name)()
    config = converter.write_config(attrs.evolve(SHAPES[name], vocab_size=320), tokenizer)
    (tmp_path / "config.json").write_text(json.dumps(config))
    edit_config(tmp_path, **changes)
    with pytest.raises(Unsupported, match=message):
        converter.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("qwen2-moe", SHAPES["qwen3-moe"], "no q/k norm"),
        ("qwen2-moe", attrs.evolve(SHAPES["qwen2-moe"], shared_expert_intermediate_size=0), "has a shared expert"),
        ("qwen2-moe", attrs.evolve(SHAPES["qwen2-moe"], head_dim=12), "no head_dim"),
        ("qwen2-moe", attrs.evolve(SHAPES["qwen2-moe"], attention_bias="all"), "no attention_bias='all', only none or qkv"),
        ("qwen3-moe", attrs.evolve(SHAPES["qwen3-moe"], attention_bias="qkv"), "no attention_bias='qkv', only none or all"),
        ("qwen3-moe", SHAPES["qwen2-moe"], "normalises queries and keys"),
        ("qwen3-moe", attrs.evolve(SHAPES["qwen3-moe"], shared_expert_intermediate_size=8), "no shared expert"),
    ],
)
def test_a_model_that_theirs_cannot_hold(
    name: str, config: MoEConfig, message: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=message):
        plugins.load(ConverterSpec, name)().write(make(plugins, config, tokenizer), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_of_another_architecture_name_the_right_one(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model_folder(tmp_path, make(plugins, SHAPES["qwen3-moe"], tokenizer))
    with pytest.raises(UsageError, match=r"holds dense models and this one is moe\. Use --to qwen3-moe\."):
        convert(plugins, str(tmp_path), tmp_path.parent / "out", to="qwen3", workspace=Workspace(tmp_path))
