"""`mm convert` and `mm info` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import load_model_folder, new_model, save_model_folder
from mm.runtime.models.storage import atomic_folder
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.pytest_plugin import CommandLine, Plugins

CONFIG = DenseConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat " * 9], TrainingOptions(vocab_size=280))


@pytest.fixture
def workspace(tokenizer: Tokenizer, mm_workspace: Path, installed: PluginManager) -> Path:
    """A workspace with one finished run, `first`, that has a checkpoint too."""
    torch.manual_seed(0)
    loaded = new_model(installed, "dense", CONFIG, tokenizer, Backend())
    run = RunFolder(mm_workspace / "runs" / "first")
    for folder in (run.model, run.checkpoints / "step-00000007"):
        with atomic_folder(folder) as path:
            save_model_folder(path, loaded)
    run.update_manifest({"algorithm": "pretrain", "state": "finished", "step": 9})
    return mm_workspace


def test_convert_says_what_it_chose_and_wrote(mm_cli: CommandLine, workspace: Path, installed: PluginManager) -> None:
    shown = mm_cli("convert", "first", workspace / "out", "--dtype", "bf16")
    assert "--to llama: the only format that can hold this model\n" in shown.err
    assert "read back bit for bit" in shown.err
    assert "generation_config.json" in shown.out
    modes = {path.name: path.stat().st_mode for path in (workspace / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"], "whoever may read the folder may read its weights"
    assert "--to native: LlamaForCausalLM into our own layout\n" in mm_cli("convert", workspace / "out", workspace / "back").err
    assert load_model_folder(installed, workspace / "back", Backend()).config.hidden_size == 32


SECOND = """
from mm.contracts import ConverterSpec, hookimpl

@hookimpl
def mm_converters():
    yield ConverterSpec(
        name="llama", summary="Another Llama.", target="mm.converters.llama.converter:Llama", architecture="dense",
        reads=("OtherLlamaForCausalLM",), writes="OtherLlamaForCausalLM",
    )
"""


def test_a_conflict_hides_neither_a_reason_nor_a_reader(mm_cli: CommandLine, mm_plugins: Plugins, workspace: Path) -> None:
    mm_cli("convert", "first", "out")
    second = mm_plugins(second=SECOND).plugins[-1].name
    cures = f"Block one with -p no:{second}:converter.llama or -p no:minimind-ascend:converter.llama."
    told = mm_cli("convert", "first", "other", "--to", "qwen3", code=2).err
    assert "qwen3 cannot hold this model: " in told and "No other installed converter can hold it." in told and cures in told
    assert cures in mm_cli("convert", "first", "other", code=2).err
    assert cures in mm_cli("convert", "first", "other", "--to", "llama", code=2).err
    assert cures in mm_cli("convert", "out", "back", code=2).err  # a folder that the second one cannot read
    mm_cli("convert", "first", "other", "--to", "llama", "-p", f"no:{second}:converter.llama")
    mm_cli("convert", "first", "native", "--to", "native")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "out", "--to", "qwen3"], "Use --to llama."),
        (["first", "out", "--dtype", "fp8"], "'fp8' is not one of"),
        (["fisrt", "out"], "Did you mean 'first'"),
        (["first", "runs"], "holds the model"),
    ],
)
def test_convert_errors(arguments: list[str], message: str, mm_cli: CommandLine, workspace: Path) -> None:
    assert message in mm_cli("convert", *arguments, code=2).err
    assert not (workspace / "out").exists()


def info(mm_cli: CommandLine, *arguments: str) -> dict:
    return json.loads(mm_cli("info", *arguments, "--json").out)


def test_info(mm_cli: CommandLine, workspace: Path, tokenizer: Tokenizer, installed: PluginManager) -> None:
    facts = info(mm_cli, "first", "--context", "32")
    loaded = load_model_folder(installed, workspace / "runs" / "first" / "model", Backend())
    assert (facts["format"], facts["architecture"]) == ("native", "dense")
    assert facts["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert facts["flops_per_token"] == loaded.config.flops_per_token(32)
    assert facts["weights"]["dtypes"] == ["F32"]
    assert facts["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert facts["origin"] == {"run": "first", "step": 9, "algorithm": "pretrain", "state": "finished"}
    assert info(mm_cli, str(workspace / "runs" / "first" / "checkpoints" / "step-00000007"))["origin"]["step"] == 7
    mm_cli("convert", "first", workspace / "out", "--dtype", "fp16")
    foreign = info(mm_cli, str(workspace / "out"))
    assert (foreign["format"], foreign["origin"], foreign["weights"]["dtypes"]) == ("llama", {}, ["F16"])
    assert foreign["parameters"] == facts["parameters"]
    assert "run first, step 9" in mm_cli("info", "first").out


def test_info_needs_no_torch(workspace: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from mm.cli import run; sys.exit(run(['info', 'first']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert "fingerprint" in done.stdout
