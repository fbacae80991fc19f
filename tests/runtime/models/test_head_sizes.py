"""Head sizes that vLLM takes: the table, and the line when converting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf_models import exported, made

from mm.core.plugins import PluginManager
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.models.head_sizes import head_size_of, note_on_heads, refusal_on_cpu, runs_flash, runs_on_cpu
from mm.runtime.text.tokenizer import Tokenizer

NOTE = (
    "head size 24: vLLM 0.32 takes 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512 on a CPU, and multiples of 8 up to 256 in "
    "its flash attention on a card; other engines take this one"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat " * 9], TrainingOptions(vocab_size=280))


@pytest.mark.parametrize(
    ("size", "cpu", "flash"), [(8, False, True), (24, False, True), (30, False, False), (32, True, True), (48, False, True),
                               (256, True, True), (264, False, False), (512, True, False)],
)  # fmt: skip
def test_a_line_is_said_unless_both_attentions_take_the_size(size: int, cpu: bool, flash: bool) -> None:
    assert (runs_on_cpu(size), runs_flash(size)) == (cpu, flash)
    note = note_on_heads({"head_dim": size})
    assert bool(note) == (not (cpu and flash)) and note.startswith(f"head size {size}: " if note else "")
    refusal = refusal_on_cpu(size)
    assert bool(refusal) == (not cpu)
    assert not refusal or "Use another engine, or train a model whose heads have one of these sizes" in refusal


def test_the_size_is_read_as_transformers_does() -> None:
    from transformers import LlamaConfig

    for given in ({"hidden_size": 96, "num_attention_heads": 4}, {"hidden_size": 96, "num_attention_heads": 4, "head_dim": 32}):
        assert head_size_of(given) == LlamaConfig(**given).head_dim
    # layouts that write it down as missing, and models without heads
    assert head_size_of({"hidden_size": 96, "num_attention_heads": 4, "head_dim": None}) == 24
    assert head_size_of({"hidden_size": 96}) is None and note_on_heads({"hidden_size": 96}) == ""


@pytest.mark.parametrize(
    ("kind", "to", "options"),
    [("2", "llama", {}), ("3-moe", "qwen3-moe", {}), ("2", "compressed-tensors", {"quantise": "w8a8"})],
)
def test_converting_says_it(
    kind: str, to: str, options: dict[str, str], installed: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for size, expected in ((24, [NOTE]), (32, [])):
        said: list[str] = []
        loaded = made(kind, installed, tokenizer, head_dim=size, max_position_embeddings=128)
        out = exported(installed, loaded, tmp_path / str(size), to, say=said.append, **options)
        assert [line for line in said if line.startswith("head size")] == expected
        assert json.loads((out / "config.json").read_text())["head_dim"] == size


@pytest.mark.parametrize("to", ["native", "gguf"])
def test_formats_that_vllm_does_not_read_say_nothing(
    to: str, installed: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    said: list[str] = []
    exported(installed, made("2", installed, tokenizer, head_dim=24), tmp_path / "out", to, say=said.append)
    assert not [line for line in said if "head size" in line]
