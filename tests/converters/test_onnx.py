"""ONNX files: run in onnxruntime they compute what our model computes, however the tokens are fed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from random_models import random_model
from transformers import AutoTokenizer

from mm.converters.onnx import graph
from mm.converters.onnx.repacker import Onnx
from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.models.convert import convert
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.sample_texts import TEXTS
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.text.tokenizer import Tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
KINDS = {
    "llama": DenseConfig(**SIZES),
    "qwen3": DenseConfig(**{**SIZES, **GEN3, "head_dim": 24, "num_key_value_heads": 1}),
    "biases": DenseConfig(**SIZES, attention_bias="all", mlp_bias=True),
    "qwen2": DenseConfig(**SIZES, attention_bias="qkv"),
    "untied": DenseConfig(**{**SIZES, "num_key_value_heads": 4}, tie_word_embeddings=False),
    "yarn": DenseConfig(**SIZES, rope_theta=1e4, rope_scaling_factor=4.0),
    "llama3": DenseConfig(**SIZES, rope_theta=1e4, rope_scaling_factor=8.0, rope_type="llama3"),
    "linear": DenseConfig(**SIZES, rope_scaling_factor=2.0, rope_type="linear"),
}


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return PluginManager.discover()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*TEXTS] * 8, TrainingOptions(vocab_size=340))


def made(plugins: PluginManager, tokenizer: Tokenizer, config: DenseConfig, folder: Path) -> LoadedModel:
    """A model whose weights are large enough that its logits differ, saved in the folder."""
    return random_model(plugins, tokenizer, config, folder, 0.2)


class Runner:
    """The file as optimum runs it."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.cache: dict[str, np.ndarray] = {}

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The logits of the new tokens; `mask` covers past and new ones."""
        if not self.cache:
            shapes = {value.name: value.shape for value in self.session.get_inputs()}
            self.cache = {
                name: np.zeros((len(ids), shapes[name][1], 0, shapes[name][3]), np.float32)
                for name in self.inputs if name.startswith("past")
            }  # fmt: skip
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **self.cache}
        found = dict(zip(self.outputs, self.session.run(None, feeds), strict=True))
        self.cache = {name: found[name.replace("past_key_values", "present")] for name in self.cache}
        return found["logits"]


def own_logits(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return loaded.model.eval()(pack([Unit((Tokens(torch.tensor(ids)),))]))[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_steps_compute_the_same_logits_and_tokens(
    kind: str, plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded = made(plugins, tokenizer, KINDS[kind], tmp_path / "own")
    said: list[str] = []
    out = convert(plugins, str(tmp_path / "own"), tmp_path / "out", "onnx", workspace=Workspace(tmp_path), say=said.append)
    assert any("opset 18" in line and "64 of 64 greedy tokens" in line for line in said), said
    runner, ids = Runner(out / "model.onnx"), tokenizer.encode("The sun rises", plain=True)
    found = [runner(np.array([ids]), np.ones((1, len(ids)), np.int64))[0]]
    for _ in range(32):
        ids.append(int(found[-1][-1].argmax()))
        found.append(runner(np.array([ids[-1:]]), np.ones((1, len(ids)), np.int64))[0])
    own = own_logits(loaded, ids)
    assert np.abs(np.concatenate(found) - own).max() < 1e-4
    assert own[-33:-1].argmax(-1).tolist() == ids[-32:]


@pytest.fixture(scope="module")
def exported(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    loaded = made(plugins, tokenizer, KINDS["qwen3"], folder / "own")
    return loaded, convert(plugins, str(folder / "own"), folder / "out", "onnx", workspace=Workspace(folder))


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batch_with_padding_in_any_pieces_gives_what_each_row_gives_alone(
    data: st.DataObject, exported: tuple[LoadedModel, Path]
) -> None:
    loaded, out = exported
    ids = st.lists(st.integers(0, loaded.config.vocab_size - 1), min_size=1, max_size=12)
    rows = data.draw(st.lists(ids, min_size=1, max_size=3))
    longest = max(map(len, rows))
    padded = np.array([[0] * (longest - len(row)) + row for row in rows])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    cuts = sorted(data.draw(st.sets(st.integers(1, longest))) | {longest})
    runner = Runner(out / "model.onnx")
    pieces = [runner(padded[:, a:b], mask[:, :b]) for a, b in zip([0, *cuts], cuts, strict=False)]
    found = np.concatenate(pieces, 1)
    assert np.isfinite(found).all()
    for row, logits in zip(rows, found, strict=True):
        assert np.abs(logits[longest - len(row) :] - own_logits(loaded, row)).max() < 1e-4


def test_names_and_shapes_are_those_of_optimum(exported: tuple[LoadedModel, Path]) -> None:
    _, out = exported
    assert {path.name for path in out.iterdir()} >= {"model.onnx", "config.json", "generation_config.json", "tokenizer.json"}
    assert not (out / "model.safetensors").exists()
    session = onnxruntime.InferenceSession(out / "model.onnx")
    whole, layers = "past_sequence_length + sequence_length", range(2)
    pairs = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    assert {value.name: value.shape for value in session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"], "attention_mask": ["batch_size", whole],
        "position_ids": ["batch_size", "sequence_length"],
        **{f"past_key_values.{pair}": ["batch_size", 1, "past_sequence_length", 24] for pair in pairs},
    }  # fmt: skip
    assert {value.name: value.shape for value in session.get_outputs()} == {
        "logits": ["batch_size", "sequence_length", 340],
        **{f"present.{pair}": ["batch_size", 1, whole, 24] for pair in pairs},
    }
    assert AutoTokenizer.from_pretrained(out).encode("hello")


def test_a_file_alone(plugins: PluginManager, exported: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    path = convert(plugins, str(exported[1].parent / "own"), tmp_path / "small.onnx", workspace=Workspace(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]
    assert path.read_bytes() == (exported[1] / "model.onnx").read_bytes()


def test_what_it_cannot_hold_is_refused(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    made(plugins, tokenizer, MoEConfig(**SIZES, intermediate_size=32), tmp_path / "moe")
    with pytest.raises(UsageError, match=r"onnx cannot hold this model: .*every expert for every token.*Use --to qwen2-moe"):
        convert(plugins, str(tmp_path / "moe"), tmp_path / "out", "onnx", workspace=Workspace(tmp_path))
    made(plugins, tokenizer, KINDS["llama"], tmp_path / "own")
    with pytest.raises(UsageError, match="--dtype bf16: onnx is written in fp32 only"):
        convert(plugins, str(tmp_path / "own"), tmp_path / "out", "onnx", dtype="bf16", workspace=Workspace(tmp_path))
    with pytest.raises(UsageError, match="--quantise q8: onnx does not write it"):
        convert(plugins, str(tmp_path / "own"), tmp_path / "out", "onnx", quantise="q8", workspace=Workspace(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moe", "own"]


def test_weights_beyond_two_gibibytes_are_refused() -> None:
    values = {"architectures": ["LlamaForCausalLM"], **attrs.asdict(DenseConfig(hidden_size=2048, num_hidden_layers=12))}
    values |= {"intermediate_size": 5632, "attention_bias": False}
    assert "one ONNX file holds less than 2 GiB, and its weights take 2," in Onnx().refusal(values)
    assert Onnx().refusal(values | {"num_hidden_layers": 10}) == ""


def test_without_the_packages_it_says_what_to_install(
    plugins: PluginManager, exported: tuple[LoadedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, said = str(exported[1].parent / "own"), list[str]()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    convert(plugins, own, tmp_path / "out", "onnx", workspace=Workspace(tmp_path), say=said.append)
    assert any("not run, since onnxruntime is not installed: pip install" in line for line in said)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"--to onnx needs the package onnx: pip install .*\[onnx\]"):
        convert(plugins, own, tmp_path / "other", "onnx", workspace=Workspace(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_computes_something_else_is_not_kept(
    plugins: PluginManager, exported: tuple[LoadedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "attention_factor", lambda config: 1.01)
    with pytest.raises(CheckpointError, match=r"its logits differ from the model's by .*nothing was kept"):
        convert(plugins, str(exported[1].parent / "own"), tmp_path / "out", "onnx", workspace=Workspace(tmp_path))
    assert list(tmp_path.iterdir()) == []
