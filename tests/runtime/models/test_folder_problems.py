"""Folders of other programs that something is wrong with: `mm info` lists it, and each command says what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

import mm
from mm.core.errors import MMError
from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.plugins.architectures.dense import DenseConfig
from mm.plugins.commands.info.facts import facts_of
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import load_model_folder, new_model
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

CONFIG = DenseConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
    max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "whole"
    torch.manual_seed(0)
    installed.load(ConverterSpec, "llama")().write(new_model(installed, "dense", CONFIG, tiny_tokenizer(), Backend()), folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(**values: Any) -> Callable[[Path], None]:
    """Changes values of config.json; None removes one."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def template(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)

    return write


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))


def cut(bytes_: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:bytes_])

    return change


BAD = {
    "missing": (tensors(lambda state: state.pop(NORM)), f"tensor {NORM} is missing"),
    "extra": (tensors(lambda state: state.update(foo=torch.ones(1))), "tensor foo is not expected"),
    "integers": (tensors(lambda state: state.update({NORM: torch.ones(32, dtype=torch.int32)})), f"tensor {NORM} holds I"),
    "shape": (tensors(lambda state: state.update({NORM: torch.ones(31)})), rf"tensor {NORM} has shape \(31,\), not \(32,\)"),
    "no template": (no_template, "there is no chat template; conversations cannot be rendered"),
    "bad template": (template("{% for x %}"), "cannot be compiled: TemplateSyntaxError.*; conversations cannot be rendered"),
    "end token": (edit(eos_token_id=[2, 99_999]), "eos_token_id is 99999, and the vocabulary has 6,400 ids"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
}


def test_a_good_folder_has_no_problems(folder: Path, installed: PluginManager) -> None:
    facts = facts_of(installed, folder, 64)
    assert facts["problems"] == []
    assert facts["not_read"].startswith("the values of the weights")


@pytest.mark.parametrize("change, problem", BAD.values(), ids=BAD)
def test_info_lists_what_cannot_be_used(
    change: Callable[[Path], None], problem: str, folder: Path, installed: PluginManager
) -> None:
    problem = problem.replace("6,400", f"{json.loads((folder / 'config.json').read_text())['vocab_size']:,}")
    change(folder)
    (found,) = facts_of(installed, folder, 64)["problems"]
    assert re.search(problem, found)


def test_info_prints_the_problem(folder: Path, mm_cli: CommandLine) -> None:
    BAD["missing"][0](folder)
    told = mm_cli("info", folder).out
    assert re.search(rf"problem +tensor {NORM} is missing", told)
    assert re.search(r"weights .* in 1 file,", told)
    assert "rope_type" not in told
    assert json.loads(mm_cli("info", folder, "--json").out)["problems"] == [f"tensor {NORM} is missing"]


def test_only_the_rotary_settings_in_use_are_described() -> None:
    assert CONFIG.idle_fields >= {"rope_type", "rope_scaling_factor", "rope_beta_fast", "rope_low_freq_factor"}
    assert attrs.evolve(CONFIG, rope_scaling_factor=2.0, rope_type="llama3").idle_fields == {
        "rope_attention_factor", "rope_beta_fast", "rope_beta_slow",
    }  # fmt: skip


def not_a_number(state: dict[str, torch.Tensor]) -> None:
    state[NORM][3] = float("nan")


CUT = r"^\S+/model.safetensors: the file is cut off or damaged: copy it again\.$"
REFUSED = {
    "cut": (cut(30_000), CUT), "only a header": (cut(100), CUT), "empty": (cut(0), CUT),
    "NaN": (tensors(not_a_number), rf"tensor {NORM} has NaN or infinite values \(1 of 32\): .* Copy it again"),
    "unknown format": (edit(architectures=["MistralForCausalLM"]), "no converter reads Mistral.* mm plugins new NAME"),
    "no format": (edit(architectures=None), r"config.json has no 'architectures'"),
    "quantized": (edit(quantization_config={"quant_method": "awq"}), "quantized weights .* use the unquantized folder"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_a_folder_is_refused_with_the_way_on(
    change: Callable[[Path], None], message: str, folder: Path, installed: PluginManager
) -> None:
    change(folder)
    with pytest.raises(MMError, match=message):
        load_model_folder(installed, folder, Backend())


def test_a_folder_without_config_is_named(folder: Path, mm_cli: CommandLine) -> None:
    (folder / "config.json").unlink()
    assert f"{folder} has no config.json: it is not a model folder." in mm_cli("info", folder, code=2).err


@pytest.mark.parametrize("case", ["no template", "bad template"])
def test_a_conversion_says_that_conversations_cannot_be_rendered(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], installed: PluginManager
) -> None:
    BAD[case][0](folder)
    mm.convert(folder, tmp_path / "out", plugins=installed)
    assert "chat template: " in capsys.readouterr().err
    mm.convert(folder, tmp_path / "quiet", plugins=installed, quiet=True)
    assert "chat template: " not in capsys.readouterr().err


def test_the_default_length_follows_a_short_model(folder: Path, tmp_path: Path, mm_cli: CommandLine) -> None:
    rows = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    line = ("train", "--algo", "sft", "--from", folder, "--data", rows, "--backend", "cpu", "--max-steps", "1", "--run", "short")
    assert "positions of the model" not in mm_cli(*line, "--max-length", "65", code=2).err
    told = mm_cli(*line, "--eval-ratio", "0").err
    assert "max length: 64, the positions of the model (by default 768)" in told


def test_the_formats_of_minimind_are_named_with_the_way_on(folder: Path, mm_cli: CommandLine) -> None:
    edit(architectures=["MiniMindForCausalLM"])(folder)
    file = folder.parent / "g3.pth"
    file.touch()
    for path in (folder, file):
        assert f"mm convert {path} {path.stem}-mm" in mm_cli("generate", path, "hello", code=2).err
