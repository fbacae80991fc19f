"""Quantised folders: every weight within half a step, read as the package compressed-tensors and transformers read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, settings, strategies as st
from random_models import random_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mm.converters.compressed_tensors.repacker import CompressedTensors
from mm.converters.compressed_tensors.rounding import dequantise, pack_words, quantise, unpack_words
from mm.converters.llama.converter import Llama
from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.models.convert import convert
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.quantised import cost_of, with_weights
from mm.runtime.models.sample_texts import TEXTS, logits_of
from mm.runtime.models.tensors import named_tensors
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.pytest_plugin import CommandLine, Train

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHARED: dict[str, Any] = {"intermediate_size": 64}
KINDS: dict[str, DenseConfig] = {
    "llama": DenseConfig(**SIZES, **SHARED),
    "qwen2": DenseConfig(**SIZES, **SHARED, attention_bias="qkv"),
    "qwen3": DenseConfig(**SIZES, **SHARED, **GEN3, tie_word_embeddings=False),
    "qwen2-moe": MoEConfig(**SIZES, **SHARED, attention_bias="qkv", shared_expert_gate=True),
    "qwen3-moe": MoEConfig(
        **SIZES, **SHARED, **GEN3, num_experts_per_tok=1, shared_expert_intermediate_size=0, router_aux_loss_scope="micro-batch"
    ),
}
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*TEXTS] * 8, TrainingOptions(vocab_size=340))


def made(plugins: PluginManager, tokenizer: Tokenizer, config: DenseConfig, folder: Path) -> LoadedModel:
    return random_model(plugins, tokenizer, config, folder, 0.1)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_weight_is_read_back_within_half_a_step(data: st.DataObject) -> None:
    bits, group = data.draw(st.sampled_from([(8, 96), (4, 32), (4, 16), (8, 8)]))
    dtype, seed = data.draw(st.sampled_from(TYPES)), data.draw(st.integers(0, 2**31))
    size = data.draw(st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 1.0, 300.0]))
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(3, 96, generator=generator) * size
    weight_OI[1] = 0
    values_OI, scales_OC = quantise(weight_OI, bits, group, dtype)
    assert values_OI.dtype == torch.int8 and scales_OC.dtype == dtype and scales_OC.shape == (3, 96 // group)
    assert -(2 ** (bits - 1)) <= int(values_OI.min()) and int(values_OI.max()) < 2 ** (bits - 1)
    step_OI = scales_OC.float().repeat_interleave(group, 1)
    # up to the rounding of float32 itself
    assert ((dequantise(values_OI, scales_OC) - weight_OI).abs() <= step_OI * 0.5 * (1 + 1e-5)).all()
    assert (dequantise(values_OI, scales_OC)[1] == 0).all()


@given(seed=st.integers(0, 2**31), words=st.integers(1, 5), bits=st.sampled_from([4, 8]))
@settings(max_examples=30, deadline=None)
def test_words_are_those_of_the_package(seed: int, words: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    least = 2 ** (bits - 1)
    values_OI = torch.randint(-least, least, (3, words * 32 // bits), generator=generator).to(torch.int8)
    assert torch.equal(pack_words(values_OI, bits), pack_to_int32(values_OI, bits))
    assert torch.equal(unpack_words(pack_words(values_OI, bits), bits), values_OI)


def decompressed(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, as the package reads them by the description in config.json."""
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    scheme, stored = config.config_groups["group_0"], load_file(folder / "model.safetensors")
    compressor = BaseCompressor.get_value_from_registry(config.format)
    found = {name: tensor for name, tensor in stored.items() if f"{name}_scale" not in stored and ".weight_" not in name}
    for name in stored:
        if name.endswith(".weight_scale"):
            stem = name.removesuffix("weight_scale")
            module = {key.removeprefix(stem): tensor for key, tensor in stored.items() if key.startswith(stem)}
            found[f"{stem}weight"] = compressor.decompress(module, scheme)["weight"]
    return found


@pytest.mark.parametrize("quantisation", ["w8a8", "w4a16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_package_reads_what_we_say_and_the_rest_is_not_quantised(
    kind: str, quantisation: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    made(plugins, tokenizer, KINDS[kind], tmp_path / "own")
    place, said = Workspace(tmp_path), list[str]()
    convert(plugins, str(tmp_path / "own"), tmp_path / "layout", kind, workspace=place)
    out = convert(
        plugins, str(tmp_path / "own"), tmp_path / "out", "compressed-tensors", "fp32", quantise=quantisation, workspace=place,
        say=said.append,
    )  # fmt: skip
    original, ours = load_file(tmp_path / "layout" / "model.safetensors"), CompressedTensors().dequantised(out, out)
    theirs = decompressed(out)
    assert theirs.keys() == original.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), name
        assert torch.equal(tensor, original[name]) == (not name.endswith("_proj.weight")), name
    assert any(f"--quantise {quantisation}: KL divergence" in line for line in said), said


@pytest.mark.parametrize("quantisation", ["w8a8", "w4a16"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_transformers_computes_with_the_weights_that_we_say(
    kind: str, quantisation: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded = made(plugins, tokenizer, KINDS[kind], tmp_path / "own")
    out = convert(
        plugins, str(tmp_path / "own"), tmp_path / "out", "compressed-tensors", "fp32", quantise=quantisation,
        workspace=Workspace(tmp_path),
    )  # fmt: skip
    ids = tokenizer.encode(TEXTS[1], plain=True)
    config = json.loads((out / "config.json").read_text())
    # activations are left alone, which only the weights' cost speaks of
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    (out / "config.json").write_text(json.dumps(config))
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    loaded.model.load_state_dict(CompressedTensors().dequantised(out, out), strict=False)
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, logits_of(loaded.model, ids), atol=1e-4, rtol=1e-4)


def test_bf16_is_the_default_and_the_config_says_it(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    made(plugins, tokenizer, KINDS["llama"], tmp_path / "own")
    out = convert(
        plugins, str(tmp_path / "own"), tmp_path / "out", "compressed-tensors", quantise="w4a16", workspace=Workspace(tmp_path)
    )
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.int32, torch.int64}
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] == 64
    assert stored["model.layers.0.mlp.up_proj.weight_packed"].shape == (64, 8)
    assert {"generation_config.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    for name, tensor in decompressed(out).items():
        assert torch.equal(tensor.float(), CompressedTensors().dequantised(out, out)[name].to(torch.bfloat16).float()), name


def test_what_it_cannot_write_is_refused_and_nothing_is_left(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    made(plugins, tokenizer, DenseConfig(**SIZES, intermediate_size=72), tmp_path / "own")
    for quantisation, told in [
        ("", "--quantise is required: compressed-tensors holds quantised weights only. It writes: w8a8, w4a16"),
        ("q4", "--quantise q4: compressed-tensors does not write it. It writes: w8a8, w4a16"),
        ("w4a16", r"w4a16 divides a row into groups of 128, 64, 32 weights, and those of .*down_proj.weight have 72"),
    ]:
        with pytest.raises(UsageError, match=told):
            convert(
                plugins, str(tmp_path / "own"), tmp_path / "out", "compressed-tensors", quantise=quantisation,
                workspace=Workspace(tmp_path),
            )  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["own"]
    with pytest.raises(UsageError, match="quantized weights"):  # it is not read as if it were a plain one
        convert(
            plugins,
            str(convert(plugins, str(tmp_path / "own"), tmp_path / "q", "compressed-tensors", quantise="w8a8")),
            tmp_path / "back",
        )


def test_the_cost_is_the_kl_divergence_of_the_logits(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = made(plugins, tokenizer, KINDS["llama"], tmp_path / "own")
    state = {name: tensor.clone() for name, tensor in named_tensors(loaded.model).items()}
    places = sum(len(tokenizer.encode(text, plain=True)) for text in TEXTS)
    same = cost_of(loaded, with_weights(loaded, Llama(), state))
    assert (same.divergence, same.same, same.places) == (0.0, places, places)
    changed = {**state, "model.norm.weight": state["model.norm.weight"] * 0}  # every token is then as likely
    own = [logits_of(loaded.model, tokenizer.encode(text, plain=True)).double() for text in TEXTS]
    entropies = [torch.distributions.Categorical(logits=logits).entropy().sum() for logits in own]
    uniform = torch.log(torch.tensor(float(loaded.config.vocab_size)))
    other = with_weights(loaded, Llama(), changed)
    assert cost_of(loaded, other).divergence == pytest.approx(float(uniform - sum(entropies) / places), rel=1e-5)
    assert all(torch.equal(state[name], tensor) for name, tensor in named_tensors(loaded.model).items())
    with pytest.raises(CheckpointError, match=r"model.norm.weight"):
        with_weights(loaded, Llama(), {name: tensor for name, tensor in state.items() if name != "model.norm.weight"})


def test_skills_are_asked_before_and_after(mm_cli: CommandLine, mm_train: Train, plugins: PluginManager, tmp_path: Path) -> None:
    """What `mm eval` measures of the model, and of one with the weights that the package reads from the file."""
    run = mm_train("sft")
    done = mm_cli(
        "convert", run.model, tmp_path / "out", "--to", "compressed-tensors", "--quantise", "w8a8", "--dtype", "fp32", "--skills",
        "--limit", 12,
    )  # fmt: skip
    lines = done.err.splitlines()
    (last,) = [line for line in lines if line.startswith("held-out skills, right answers: ")]
    asked = mm_cli("eval", run.model, "--skills", "--limit", 12, "--json", "--backend", "cpu", "--dtype", "fp32")
    (measured,) = json.loads(asked.out)
    right, total = (sum(entry[key] for entry in measured["skills"]) for key in ("right", "total"))
    assert total == 12 and last.startswith(f"held-out skills, right answers: original {right} of 12, w8a8 ")
    for entry in measured["skills"]:
        (row,) = [line for line in lines if line.strip().startswith(f"{entry['suite']}, {entry['tier']}")]
        assert row.count("[") == 2 and f" {entry['total']} " in row and f"{entry['share']:.2f} [{entry['low']:.2f}" in row


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--skills"], "give --quantise, or measure it with mm eval"), (["--limit", "3"], "--limit has no effect without --skills")],
)
def test_skills_without_a_quantisation_are_refused(words: list[str], message: str, mm_cli: CommandLine, tmp_path: Path) -> None:
    assert message in mm_cli("convert", "any", tmp_path / "out", *words, code=2).err
