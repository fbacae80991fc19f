"""Model folders from elsewhere that are damaged or meant to harm: each ends in one message, within bounds, and runs no code.

The default suite opens a sample of them, `pytest -m hostile` all.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_folders import CANARY, Case, cases
from hostile_runner import Runner

from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.moe import GEN3_EXPERTS, MoEConfig
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import new_model, save_model_folder
from mm.testing import tiny_tokenizer

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
    warm = Runner()
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


def test_there_are_many() -> None:
    assert len(CASES) >= 155 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_a_sample_ends_in_one_message(case: Case, bases: dict[str, Path], runner: Runner, tmp_path: Path) -> None:
    check(case, bases, runner, tmp_path)


@pytest.mark.hostile
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_one_ends_in_one_message(case: Case, bases: dict[str, Path], runner: Runner, tmp_path: Path) -> None:
    check(case, bases, runner, tmp_path)
