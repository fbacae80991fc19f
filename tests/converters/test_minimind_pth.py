"""MiniMind's own files: read from their tensors alone, written so that they are read back, and with the right tokenizer only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import GEN3, DenseConfig, gen3_intermediate_size
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.devices.backend import Backend
from mm.runtime.models.convert import convert
from mm.runtime.models.folder import LoadedModel, load_model_folder, new_model, save_model_folder
from mm.runtime.models.sample_texts import TEXTS
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.heads import linear_cross_entropy
from mm.runtime.text.tokenizer import Tokenizer

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
GEN3_MOE = {
    **GEN3, "num_key_value_heads": 4, "num_experts_per_tok": 1, "shared_expert_intermediate_size": 0,
    "router_aux_loss_coef": 5e-4, "router_aux_loss_scope": "micro-batch",
}  # fmt: skip
KINDS: dict[str, DenseConfig] = {
    "2": DenseConfig(**SIZES),
    "2-moe": MoEConfig(**SIZES, intermediate_size=32),
    "3": DenseConfig(**{**SIZES, **GEN3, "num_key_value_heads": 4}, intermediate_size=gen3_intermediate_size(64)),
    "3-moe": MoEConfig(**{**SIZES, **GEN3_MOE}, intermediate_size=32),
}
TRUNK = ("input_layernorm", "post_attention_layernorm", *(f"self_attn.{name}_proj" for name in "qkvo"))
EXPERT = [f"{name}_proj" for name in ("gate", "up", "down")]
# the names of one layer in MiniMind's model/model_minimind.py
NAMES = {
    "2": [*TRUNK, *(f"mlp.{name}" for name in EXPERT)],
    "2-moe": [
        *TRUNK, "mlp.gate", *(f"mlp.experts.{n}.{name}" for n in range(4) for name in EXPERT),
        *(f"mlp.shared_experts.0.{name}" for name in EXPERT),
    ],
    "3": [*TRUNK, "self_attn.q_norm", "self_attn.k_norm", *(f"mlp.{name}" for name in EXPERT)],
    "3-moe": [
        *TRUNK, "self_attn.q_norm", "self_attn.k_norm", "mlp.gate",
        *(f"mlp.experts.{n}.{name}" for n in range(4) for name in EXPERT),
    ],
}  # fmt: skip
SENTENCES = [*TEXTS, "the cat sat on the mat 12345", "我们一起去公园"]


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return PluginManager.discover()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES * 8, TrainingOptions(vocab_size=340))


@pytest.fixture
def other(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The folder of a tokenizer with the same tokens under other ids."""
    folder = tmp_path / "model"
    tokenizer.save(folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    ids = values["model"]["vocab"]
    special = {token["content"] for token in values["added_tokens"]}
    plain = [token for token in ids if token not in special]
    ids.update(zip(plain, [ids[token] for token in reversed(plain)], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


def made(kind: str, plugins: PluginManager, tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> LoadedModel:
    """A model with random weights everywhere that are float16 numbers, as in MiniMind's files."""
    torch.manual_seed(seed)
    config = attrs.evolve(KINDS[kind], **changes)
    loaded = new_model(plugins, "moe" if isinstance(config, MoEConfig) else "dense", config, tokenizer, Backend())
    for tensor in named_tensors(loaded.model).values():
        tensor.add_(torch.randn_like(tensor) * 0.02)
        tensor.copy_(tensor.half().float())
    return loaded


def saved(loaded: LoadedModel, folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_model_folder(folder, loaded)
    return folder


def brought_in(plugins: PluginManager, path: Path, folder: Path, tokenizer: Path | None = None) -> LoadedModel:
    convert(plugins, str(path), folder, tokenizer=str(tokenizer) if tokenizer else None, workspace=Workspace(folder.parent))
    return load_model_folder(plugins, folder, Backend())


def assert_equal(found: LoadedModel, expected: LoadedModel) -> None:
    sizes = {"head_dim": expected.config.head_size, "intermediate_size": expected.config.ffn_size}
    if isinstance(expected.config, MoEConfig):
        sizes["shared_expert_intermediate_size"] = expected.config.shared_ffn_size
    assert found.config == attrs.evolve(expected.config, **sizes)
    for name, tensor in named_tensors(expected.model).items():
        assert torch.equal(named_tensors(found.model)[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), tied=st.booleans(), layers=st.integers(1, 3))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back_bit_for_bit(
    kind: str, seed: int, tied: bool, layers: int, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    loaded = made(kind, plugins, tokenizer, seed, tie_word_embeddings=tied, num_hidden_layers=layers)
    source = saved(loaded, tmp_path / "own")
    out = convert(plugins, str(source), tmp_path / "out", "minimind-pth", workspace=Workspace(tmp_path))
    (path,) = out.glob("*.pth")
    assert path.name == f"full_sft_64{'_moe' if 'moe' in kind else ''}.pth"
    state = torch.load(path, weights_only=True)
    names = [f"model.layers.{layer}.{name}.weight" for layer in range(layers) for name in NAMES[kind]]
    assert {*state} == {*names, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert_equal(brought_in(plugins, path, tmp_path / "back"), loaded)


def test_the_shared_expert_of_generation_2_computes_what_minimind_computes(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded = made("2-moe", plugins, tokenizer, num_hidden_layers=1)
    convert(plugins, str(saved(loaded, tmp_path / "own")), tmp_path / "out.pth", dtype="fp32", workspace=Workspace(tmp_path))
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    x_TE = torch.randn(7, 64)
    layer = loaded.model.blocks[0]
    (found,) = [module for name, module in layer.named_modules() if name.endswith("mlp")]
    torch.testing.assert_close(found(x_TE)[0], moe_of_generation_2(state, x_TE), atol=1e-6, rtol=1e-5)


def moe_of_generation_2(state: dict[str, Tensor], x_TE: Tensor) -> Tensor:
    """softmax over the experts, the best two scaled to a sum of 1, plus the shared expert."""

    def expert(name: str) -> Tensor:
        gate, up, down = (state[f"model.layers.0.mlp.{name}.{part}.weight"] for part in EXPERT)
        return (torch.nn.functional.silu(x_TE @ gate.T) * (x_TE @ up.T)) @ down.T

    scores = torch.softmax(x_TE @ state["model.layers.0.mlp.gate.weight"].T, -1)
    best, index = scores.topk(2, -1)
    weights = torch.zeros_like(scores).scatter(1, index, best / (best.sum(-1, keepdim=True) + 1e-20))
    outputs = torch.stack([expert(f"experts.{n}") for n in range(4)], 1)
    return (weights.unsqueeze(-1) * outputs).sum(1) + expert("shared_experts.0")


def test_a_resume_file_and_a_folder_of_minimind_are_read(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = made("3-moe", plugins, tokenizer)
    own = saved(loaded, tmp_path / "own")
    out = convert(plugins, str(own), tmp_path / "out", "minimind-pth", workspace=Workspace(tmp_path))
    state = torch.load(out / "full_sft_64_moe.pth", weights_only=True)
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 1, "step": 7}, out / "full_sft_64_moe_resume.pth")
    assert_equal(brought_in(plugins, out / "full_sft_64_moe_resume.pth", tmp_path / "back"), loaded)
    folder = tmp_path / "hf"
    shutil.copytree(out, folder, ignore=shutil.ignore_patterns("*.pth"))
    torch.save(state, folder / "pytorch_model.bin")
    values = {
        "architectures": ["MiniMindForCausalLM"], "auto_map": {"AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM"},
        "model_type": "minimind", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "rope_theta": 1e6,
        "rms_norm_eps": 1e-6, "use_moe": True, "num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.25,
        "inference_rope_scaling": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="mm convert"):
        load_model_folder(plugins, folder, Backend())
    config = brought_in(plugins, folder, tmp_path / "back2").config
    assert isinstance(config, MoEConfig)
    assert (config.num_experts_per_tok, config.router_aux_loss_coef, config.rope_scaling_factor) == (2, 0.25, 16.0)


def test_info_tells_of_a_file_what_it_is(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path, mm_cli: Any) -> None:
    own = saved(made("3-moe", plugins, tokenizer), tmp_path / "own")
    path = convert(plugins, str(own), tmp_path / "m.pth", workspace=Workspace(tmp_path))
    facts = json.loads(mm_cli("info", path, "--json").out)
    expected = json.loads(mm_cli("info", own, "--json").out)
    assert facts["format"] == "minimind-pth, as qwen3-moe" and facts["weights"]["dtypes"] == ["float16"]
    assert facts["parameters"] == expected["parameters"] and facts["flops_per_token"] == expected["flops_per_token"]
    assert "mm convert" in mm_cli("info", path).out


def test_what_a_pth_does_not_say_is_refused(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for number, (changes, told) in enumerate([
        ({"rope_theta": 1e4}, "rope_theta=10000.0: that would be read as 1000000.0"),
        ({"num_attention_heads": 4}, "num_attention_heads=4"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
    ]):  # fmt: skip
        own = saved(made("2", plugins, tokenizer, **changes), tmp_path / f"own{number}")
        with pytest.raises(UsageError, match=f"minimind-pth cannot hold this model: .*{told}.*Use --to llama"):
            convert(plugins, str(own), tmp_path / "out", "minimind-pth", workspace=Workspace(tmp_path))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), "tensor model.layers.1.mlp.up_proj.weight is missing"),
        (lambda state: state.update({"model.other.weight": torch.ones(2)}), r"out\.pth: tensor model.other.weight is not exp"),
        (lambda state: state.pop("model.embed_tokens.weight"), "not a MiniMind model: it has no matrix model.embed"),
        (lambda state: state.update({"x.lora.A.weight": torch.ones(2, 2)}), "is a LoRA file"),
        (lambda state: state.update({"model.layers.0.mlp.experts.0.gate_proj.weight": torch.ones(2, 2)}), "0 shared experts"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused_by_name(
    change: Any, told: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    own = saved(made("2", plugins, tokenizer), tmp_path / "own")
    path = convert(plugins, str(own), tmp_path / "out.pth", workspace=Workspace(tmp_path))
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises((CheckpointError, UsageError), match=told):
        convert(plugins, str(path), tmp_path / "back", tokenizer=str(own), workspace=Workspace(tmp_path))
    assert not (tmp_path / "back").exists()


def test_code_in_a_pth_is_not_run(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"model.embed_tokens.weight": Evil()}, tmp_path / "evil.pth")
    tokenizer.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"evil\.pth holds code \(posix\.mkdir\), which is never run"):
        convert(plugins, str(tmp_path / "evil.pth"), tmp_path / "out", workspace=Workspace(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"no model at all", b"PK\x03\x04 cut off"])
def test_a_file_of_another_kind_is_told_so(content: bytes, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "x.PTH").write_bytes(content)
    tokenizer.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"x\.PTH: (torch\.save has not written it|the file is cut off)"):
        convert(plugins, str(tmp_path / "x.PTH"), tmp_path / "out", workspace=Workspace(tmp_path))


def test_a_file_is_replaced_by_force_and_only_if_it_is_a_model(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    own = str(saved(made("2", plugins, tokenizer), tmp_path / "own"))
    out = tmp_path / "x.pth"
    out.write_text("precious")
    with pytest.raises(UsageError, match="is no file that mm writes"):
        convert(plugins, own, out, force=True, workspace=Workspace(tmp_path))
    assert out.read_text() == "precious"
    out.unlink()
    said: list[str] = []
    convert(plugins, own, out, workspace=Workspace(tmp_path), say=said.append)
    assert any("the file alone, without" in line and "tokenizer.json" in line for line in said)
    with pytest.raises(UsageError, match="exists: choose another place, or pass --force"):
        convert(plugins, own, out, workspace=Workspace(tmp_path))
    convert(plugins, own, out, force=True, workspace=Workspace(tmp_path))


def test_a_wrong_tokenizer_is_refused_and_the_right_one_is_found(
    plugins: PluginManager, tokenizer: Tokenizer, other: Path, tmp_path: Path
) -> None:
    loaded = made("2", plugins, tokenizer)
    learn(loaded, SENTENCES)
    own = saved(loaded, tmp_path / "own")
    path = convert(plugins, str(own), tmp_path / "files" / "full_sft_64.pth", workspace=Workspace(tmp_path))
    moved = other.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"has no tokenizer.*--tokenizer"):
        convert(plugins, str(path), tmp_path / "back", workspace=Workspace(tmp_path))
    moved.rename(other)  # MiniMind's `model`, beside the folder of its files
    with pytest.raises(UsageError, match=r"in order and .* in disorder.*--tokenizer"):
        convert(plugins, str(path), tmp_path / "back", workspace=Workspace(tmp_path))
    assert not (tmp_path / "back").exists()
    said: list[str] = []
    convert(plugins, str(path), tmp_path / "back", tokenizer=str(own), workspace=Workspace(tmp_path), say=said.append)
    assert load_model_folder(plugins, tmp_path / "back", Backend()).tokenizer.fingerprint == tokenizer.fingerprint
    assert any("MiniMind 2, 2 layers of 64, 8 heads and 2 for keys and values" in line for line in said)


@pytest.mark.parametrize("beside", ["right", "wrong"])
def test_of_two_tokenizers_near_a_file_the_models_own_is_taken(
    beside: str, plugins: PluginManager, tokenizer: Tokenizer, other: Path, tmp_path: Path
) -> None:
    loaded = made("2", plugins, tokenizer)
    learn(loaded, SENTENCES)
    path = convert(plugins, str(saved(loaded, tmp_path / "own")), tmp_path / "files" / "m.pth", workspace=Workspace(tmp_path))
    right, wrong = tokenizer, Tokenizer.load(other)
    near, above = (right, wrong) if beside == "right" else (wrong, right)
    shutil.rmtree(other)
    near.save(path.parent)
    above.save(tmp_path / "model")
    said: list[str] = []
    convert(plugins, str(path), tmp_path / "back", workspace=Workspace(tmp_path), say=said.append)
    assert load_model_folder(plugins, tmp_path / "back", Backend()).tokenizer.fingerprint == right.fingerprint
    (line,) = [line for line in said if line.startswith("tokenizer: that in ")]
    own, foreign = (path.parent, tmp_path / "model") if beside == "right" else (tmp_path / "model", path.parent)
    assert line.startswith(f"tokenizer: that in {own}, by") and f"{own}: " in line and f"{foreign}: " in line
    above.save(path.parent / "model")  # twice the same is no third one
    convert(plugins, str(path), tmp_path / "again", workspace=Workspace(tmp_path))


def test_tokenizers_that_an_untrained_model_does_not_tell_apart_are_named(
    plugins: PluginManager, tokenizer: Tokenizer, other: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    loaded = new_model(plugins, "dense", KINDS["2"], tokenizer, Backend())
    path = convert(plugins, str(saved(loaded, tmp_path / "own")), tmp_path / "files" / "m.pth", workspace=Workspace(tmp_path))
    tokenizer.save(path.parent)
    with pytest.raises(UsageError, match=r"2 tokenizers lie near the model.*--tokenizer") as caught:
        convert(plugins, str(path), tmp_path / "back", workspace=Workspace(tmp_path))
    assert f"{path.parent}: " in str(caught.value) and f"{other}: " in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_an_untrained_model_cannot_tell_and_says_so(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = new_model(plugins, "dense", KINDS["2"], tokenizer, Backend())
    path = convert(plugins, str(saved(loaded, tmp_path / "own")), tmp_path / "out" / "m.pth", workspace=Workspace(tmp_path))
    said: list[str] = []
    convert(plugins, str(path), tmp_path / "b", tokenizer=str(tmp_path / "own"), workspace=Workspace(tmp_path), say=said.append)
    assert any("NOT CONFIRMED" in line for line in said)


def learn(loaded: LoadedModel, texts: list[str]) -> None:
    """A few steps on the texts."""
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=5e-3)
    ids = [torch.tensor(loaded.tokenizer.encode(text)) for text in texts]
    batch, targets = pack([Unit((Tokens(each),)) for each in ids]), torch.cat([each[1:] for each in ids])
    ends = torch.cumsum(torch.tensor([len(each) for each in ids]), 0) - 1
    kept = torch.tensor([n for n in range(sum(map(len, ids))) if n not in ends])
    for _ in range(60):
        loss, _ = loaded.model.train()(batch, head=lambda hidden, weight: linear_cross_entropy(hidden[kept], weight, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
