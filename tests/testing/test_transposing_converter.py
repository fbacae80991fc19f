"""A format whose matrices are transposed: it converts both ways, and a damaged file is one message with tensor and file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from twins import CONVERTER

from mm.core.workspace import RunFolder
from mm.testing.pytest_plugin import CommandLine, Plugins, Train

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def run(mm_plugins: Plugins, mm_train: Train) -> RunFolder:
    mm_plugins(part=CONVERTER)
    return mm_train("pretrain", run="a")


def test_a_model_goes_there_and_back(run: RunFolder, mm_cli: CommandLine, mm_workspace: Path) -> None:
    mm_cli("convert", "a", "out", "--to", "part")
    mm_cli("convert", "out", "back")
    folders = (run.model, mm_workspace / "out", mm_workspace / "back")
    own, theirs, back = (load_file(folder / "model.safetensors") for folder in folders)
    assert torch.equal(theirs[NAME], own[NAME].t()) and theirs[NAME].shape != own[NAME].shape
    assert own.keys() == back.keys() and all(torch.equal(own[name], back[name]) for name in own)


@pytest.mark.parametrize("words", [("generate", "out", "hello"), ("convert", "out", "back"), ("info", "out")])
def test_a_tensor_of_another_shape_is_named_with_its_file(words: tuple[str, ...], run: RunFolder, mm_cli: CommandLine) -> None:
    mm_cli("convert", "a", "out", "--to", "part")
    file = Path("out/model.safetensors")
    tensors = load_file(file)
    right = tuple(tensors[NAME].shape)
    save_file({**tensors, NAME: torch.zeros(3)}, file)
    told = mm_cli(*words, code=0 if words[0] == "info" else 1)
    assert f"tensor {NAME} has shape (3,), not {right}" in told.out + told.err
    assert words[0] == "info" or f"{file}: tensor" in told.err
    assert "Traceback" not in told.err


def test_a_rule_that_raises_is_named_with_tensor_and_file(mm_cli: CommandLine, mm_plugins: Plugins, run: RunFolder) -> None:
    mm_cli("convert", "a", "out", "--to", "part")
    Path("part.py").write_text(CONVERTER.replace("theirs.t()", 'theirs["x"]'))
    told = mm_cli("-p", "./part.py", "convert", "out", "back", code=1).err
    assert told.startswith("mm: out/model.safetensors: tensor model.layers.0.") and "Traceback" not in told
    assert "to_ours of the rule model.layers.{layer}." in told
