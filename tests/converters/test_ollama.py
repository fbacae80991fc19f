"""Folders for Ollama: the GGUF beside a Modelfile with the template in Go, or a refusal. tests/engines compares the template."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gguf_models import exported, made, read_gguf

from mm.converters.ollama.templates import go_template
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.runtime.models.converter import Unsupported
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE, Tokenizer
from mm.testing import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def test_a_folder_has_the_file_and_a_modelfile_that_names_it(
    plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    said: list[str] = []
    loaded = made("3", plugins, tokenizer, max_position_embeddings=512)
    folder = exported(plugins, loaded, tmp_path / "out", "ollama", quantise="q8_0", say=said.append)
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "model-q8_0.gguf"]
    values, _, types = read_gguf(folder / "model-q8_0.gguf")
    assert values["general.architecture"] == "qwen3" and types["blk.0.attn_q.weight"] == "Q8_0"
    text = (folder / "Modelfile").read_text(encoding="utf-8")
    found = re.fullmatch(r'FROM \./(\S+)\nTEMPLATE """(.*?)"""\n(.*)', text, re.DOTALL)
    assert found and found[1] == "model-q8_0.gguf"
    assert found[2] == go_template(DEFAULT_TEMPLATE.read_text(encoding="utf-8"))
    assert found[3].splitlines() == [
        'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"', "PARAMETER num_ctx 512", "PARAMETER temperature 0.7",
        "PARAMETER top_p 0.9", "PARAMETER top_k 0", "PARAMETER min_p 0.0", "PARAMETER repeat_penalty 1.0",
    ]  # fmt: skip
    assert "in that folder: ollama create NAME -f Modelfile" in said


def test_another_chat_template_is_refused_with_the_way_out(plugins: PluginManager, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = made("2", plugins, tokenizer.with_template(tokenizer.template.replace("assistant", "bot")))
    with pytest.raises(Unsupported, match=r"neither mm's nor MiniMind's.*--to gguf.*TEMPLATE"):
        exported(plugins, loaded, tmp_path / "out", "ollama")
    assert not (tmp_path / "out").exists()
    assert exported(plugins, loaded, tmp_path / "m.gguf").is_file()


def test_the_record_says_that_it_only_writes(plugins: PluginManager) -> None:
    spec = plugins.get(ConverterSpec, "ollama")
    assert (spec.reads, spec.writes, spec.architecture) == ((), "Modelfile", "")
