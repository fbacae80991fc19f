"""Model folders from elsewhere that are damaged or meant to harm: each ends in one message, within bounds, and runs no code.

The default suite opens a sample of them, `pytest -m hostile` all.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_folders import CANARY, Case, cases, mutation
from warm_runner import Runner

from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.moe import GEN3_EXPERTS, MoEConfig
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import new_model, save_model_folder
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "native": DenseConfig(**SIZES), "llama": DenseConfig(**SIZES, tie_word_embeddings=False),
    "qwen3": DenseConfig(**SIZES, **GEN3),
    "qwen2-moe": MoEConfig(**SIZES), "qwen3-moe": MoEConfig(**SIZES, **GEN3, **GEN3_EXPERTS),
}  # fmt: skip
CASES = list(cases(list(CONFIGS)))
SAMPLE = random.Random(1).sample(CASES, 30)
SECONDS, MEGABYTES = 30, 1024
COMMANDS = {"generate": ("generate", "hi", "--backend", "cpu", "--max-new-tokens", "4", "--temperature", "0"), "info": ("info",)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> dict[str, Path]:
    """A small whole folder of each format. The one in our own layout has no index, whose hashes would find every change."""
    root, tokenizer = tmp_path_factory.mktemp("bases"), tiny_tokenizer()
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        kind = "moe" if isinstance(config, MoEConfig) else "dense"
        loaded = new_model(installed, kind, config, tokenizer, Backend())
        if name == "native":
            (root / name).mkdir()
            save_model_folder(root / name, loaded)
        else:
            installed.load(ConverterSpec, name)().write(loaded, root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    warm = Runner("mm.runtime.generation.text_model")
    yield warm
    warm.close()


def check(case: Case, bases: dict[str, Path], runner: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bases[case.base], folder)
    case.mutation(folder, random.Random(case.name))
    for name, (command, *rest) in COMMANDS.items():
        found = runner(command, folder, *rest)
        shown = f"{case.name}, mm {name}: {found}"
        assert found["code"] in (0, 1, 2), shown
        assert "Traceback" not in found["err"], shown
        assert found["seconds"] < SECONDS and found["megabytes"] < MEGABYTES, shown
        assert not list(tmp_path.rglob(CANARY)), shown
        if found["code"]:
            messages = [line for line in found["err"].splitlines() if line.startswith("mm: ")]
            assert len(messages) == 1 and len(messages[0]) < 2000, shown
        elif name == "generate":
            assert not case.fails and "tokens" in found["err"], shown


def test_whole_folders_answer(bases: dict[str, Path], runner: Runner) -> None:
    for folder in bases.values():
        for command, *rest in COMMANDS.values():
            found = runner(command, folder, *rest)
            assert found["code"] == 0 and found["out"], found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("native:layers", "config.json: 'num_hidden_layers' must be at least 1 and at most 10000"),
        ("qwen3:layers-within", "the config describes [0-9,]+ tensors, and there are"),
        ("native:wide", "config.json describes 107,374,215,168 parameters|takes [0-9,.]+ GB in float32"),
        ("native:weights:nan", r"has NaN or infinite values \(1 of "),
        ("llama:weights:complex", "tensor [a-z0-9_.]+ holds complex64, not floating-point weights"),
        ("native:weights:integers", "tensor [a-z0-9_.]+ holds I64, not floating-point weights"),
        ("native:tokenizer:grows", "its normalizer may make a text 1,000,000,000,000,000,000 times as long"),
        ("native:config.json:pipe", "config.json: is not a regular file"),
        ("llama:hidden_size:text", "config.json: 'hidden_size' must be an integer, not '4'"),
    ],
)
def test_the_message_names_what_is_wrong(
    name: str, message: str, bases: dict[str, Path], runner: Runner, tmp_path: Path
) -> None:
    shutil.copytree(bases[name.partition(":")[0]], tmp_path / "model")
    mutation(name)(tmp_path / "model", random.Random(0))
    found = runner("generate", tmp_path / "model", *COMMANDS["generate"][1:])
    assert found["code"] in (1, 2) and re.search(message, found["err"]), found


def test_a_model_whose_logits_are_nan_says_so(
    bases: dict[str, Path], mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm.plugins.architectures.decoder import Decoder

    monkeypatch.setattr(Decoder, "prefill", lambda self, batch, slots, cache: torch.full((1, 300), float("nan")))
    found = mm_cli("generate", bases["native"], *COMMANDS["generate"][1:], code=1)
    assert "The model's logits are NaN" in found.err and not found.out.strip()


def test_there_are_many() -> None:
    assert len(CASES) >= 155 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_a_sample_ends_in_one_message(case: Case, bases: dict[str, Path], runner: Runner, tmp_path: Path) -> None:
    check(case, bases, runner, tmp_path)


@pytest.mark.hostile
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_one_ends_in_one_message(case: Case, bases: dict[str, Path], runner: Runner, tmp_path: Path) -> None:
    check(case, bases, runner, tmp_path)
