"""`mm info` of formats that are only written: sizes, types, tokenizer and context length as the files themselves have them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter
from gguf_models import exported, made
from safetensors.torch import load_file

from mm.core.plugins import PluginManager
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.repacker import contents_of
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

# name -> (the format, the name of OUT, further options of mm.convert)
EXPORTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gguf": ("gguf", "m.gguf", {"dtype": "fp16"}),
    "gguf-quantised": ("gguf", "folder", {"quantise": "q8_0"}),
    "ollama": ("ollama", "model", {"quantise": "q4_0"}),
    "onnx": ("onnx", "onnx", {}),
    "onnx-file": ("onnx", "m.onnx", {}),
    "w8a8": ("compressed-tensors", "q", {"quantise": "w8a8"}),
    "w4a16": ("compressed-tensors", "q", {"quantise": "w4a16", "dtype": "fp16"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(installed: PluginManager) -> LoadedModel:
    return made("2", installed, tiny_tokenizer(), max_position_embeddings=256)


@pytest.mark.parametrize("name", EXPORTS)
def test_a_written_format_is_described(
    name: str, model: LoadedModel, installed: PluginManager, mm_cli: CommandLine, tmp_path: Path
) -> None:
    to, out, options = EXPORTS[name]
    path = exported(installed, model, tmp_path / out, to, **options)
    facts = json.loads(mm_cli("info", path, "--json").out)
    # a converter that computes float32 as ours does has nothing besides the model's weights
    assert (facts["format"], facts["parameters"]) == (to, model.config.num_parameters())
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in (".gguf", ".onnx", ".safetensors")]
    assert facts["weights"]["files"] == {file.name: file.stat().st_size for file in files}
    assert facts["context_length"] == (None if name == "onnx-file" else 256)
    assert facts["quantisation"] == options.get("quantise", "")
    assert (facts["tokenizer"] or {}).get("vocab_size") == (None if name == "onnx-file" else model.tokenizer.vocab_size)
    assert "does not read it: keep the model" in facts["problems"][0]
    words = facts["command"].split()
    assert words[:2] == ["mm", "convert"] and words[3:6] == [str(path), "--to", to]
    assert all(value in words for value in options.values())
    shown = mm_cli("info", path).out
    assert f"{facts['parameters']:,}" in shown and facts["command"] in shown and "does not read it" in shown
    sizes = facts["config"]
    if to in ("gguf", "ollama"):
        assert facts["weights"]["dtypes"] == dict(Counter(t.tensor_type.name.lower() for t in GGUFReader(files[0]).tensors))
        assert (sizes["embedding_length"], sizes["attention.head_count_kv"]) == (64, 1)
    elif to == "onnx":
        assert (sizes["num_hidden_layers"], sizes["num_key_value_heads"], sizes["head_dim"]) == (2, 1, 32)
    else:
        stored = load_file(files[0])
        assert sum(facts["weights"]["dtypes"].values()) == len(stored)
        assert sizes["weights"] == ("8 bits, channel" if name == "w8a8" else "4 bits, group of 32")


def test_a_file_of_another_program_is_described_too(mm_cli: CommandLine, tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "phi3")
    writer.add_block_count(2)
    writer.add_file_type(15)  # MOSTLY_Q4_K_M, which mm does not write
    writer.add_tensor("token_embd.weight", np.zeros((3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = json.loads(mm_cli("info", path, "--json").out)
    assert (facts["architecture"], facts["parameters"], facts["quantisation"]) == ("phi3 of llama.cpp", 12, "q4_k_m")
    assert (facts["tokenizer"], facts["context_length"], facts["command"]) == (None, None, "")
    assert "another program" in mm_cli("info", path).out


def test_a_damaged_file_is_named(mm_cli: CommandLine, tmp_path: Path) -> None:
    for name, content in (("m.gguf", b"GGUF\x03\x00\x00"), ("m.onnx", b"\xff\xff\xff")):
        (tmp_path / name).write_bytes(content)
        done = mm_cli("info", tmp_path / name, code=1)
        assert f"{tmp_path / name}: {name.partition('.')[2]} cannot read it" in done.err


def test_a_model_folder_and_other_files_are_of_no_such_format(
    model: LoadedModel, installed: PluginManager, tmp_path: Path
) -> None:
    path = exported(installed, model, tmp_path / "hf", "llama")
    assert contents_of(installed, path) is None
    (tmp_path / "notes.gguf").write_text("no model")
    (tmp_path / "empty").mkdir()
    for other in (tmp_path / "notes.gguf", tmp_path / "empty", tmp_path / "missing"):
        assert contents_of(installed, other) is None
    # a folder in which both a model of ours and a GGUF file lie is a model folder
    gguf = exported(installed, model, tmp_path / "m.gguf")
    shutil.copy(gguf, path / "m.gguf")
    assert contents_of(installed, path) is None
