"""Weights in shards are the whole, in files that keep the limit, as transformers reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import mm
from mm.core.errors import UsageError
from mm.runtime.models.hf_files import read_tensors, weight_files
from mm.runtime.models.shards import parse_size, save_in_shards
from mm.testing import tiny_run
from mm.testing.pytest_plugin import CommandLine


@given(sizes=st.lists(st.integers(0, 40), min_size=0, max_size=12), largest=st.one_of(st.none(), st.integers(1, 300)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_are_the_whole_and_keep_the_limit(sizes: list[int], largest: int | None, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    weights = {f"layer.{n}.w": torch.full((size,), float(n)) for n, size in enumerate(sizes)}
    save_in_shards(weights, tmp_path, largest)
    found = read_tensors(tmp_path)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    files, total = weight_files(tmp_path), 4 * sum(sizes)
    if largest is None or total <= largest:
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
        return
    for path in files:
        tensors = load_file(path)
        assert tensors and (4 * sum(map(torch.numel, tensors.values())) <= largest or len(tensors) == 1)
    if len(files) > 1:
        assert [path.name for path in files] == [
            f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
        ]
        assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == total


@pytest.mark.parametrize(
    ("text", "size"), [("200MB", 200_000_000), ("5GB", 5 * 10**9), ("1.5 kib", 1536), ("2GiB", 2**31), ("", None)]
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size("--max-shard-size", text) == size


@pytest.mark.parametrize("text", ["200", "MB", "-1MB", "0GB", "5 bananas", "1e3MB", "٣MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--max-shard-size {text}: expected a size, such as 200MB"):
        parse_size("--max-shard-size", text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("shards"), "pretrain", run="base", max_steps=1).model


def test_a_converted_folder_in_shards_is_read_by_us_and_by_transformers(model: Path, tmp_path: Path) -> None:
    whole = mm.convert(model, tmp_path / "whole", to="llama")
    out = mm.convert(model, tmp_path / "out", to="llama", max_shard_size="500KB")
    files = weight_files(out)
    assert len(files) > 1 and not (out / "model.safetensors").exists()
    assert all(path.stat().st_size < 550_000 for path in files)
    expected = load_file(whole / "model.safetensors")
    for found in (read_tensors(out), AutoModelForCausalLM.from_pretrained(out).state_dict()):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    back, own = (load_file(folder / "model.safetensors") for folder in (mm.convert(out, tmp_path / "back"), model))
    assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)
    # and as transformers writes them
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(tmp_path / "theirs", max_shard_size="500KB")
    index, theirs = (
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (out, tmp_path / "theirs")
    )
    assert index["weight_map"].keys() == theirs["weight_map"].keys()
    assert index["metadata"]["total_size"] == theirs["metadata"]["total_size"]


def test_quantised_folders_too_and_others_refuse_the_option(model: Path, tmp_path: Path) -> None:
    out = mm.convert(model, tmp_path / "out", to="compressed-tensors", quantise="w8a8", max_shard_size="200KB")
    assert len(weight_files(out)) > 1
    for to in ("native", "onnx", "minimind-pth", "peft"):
        options: dict[str, Any] = {"to": to, "max_shard_size": "200KB"}
        with pytest.raises(UsageError, match="--max-shard-size"):
            mm.convert(model, tmp_path / to, **options)
        assert not (tmp_path / to).exists()


def test_a_failure_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path, *args: Any, **values: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(OSError, match="No space left"):
        mm.convert(model, tmp_path / "out", to="llama", max_shard_size="200KB")
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_it(model: Path, tmp_path: Path, mm_cli: CommandLine) -> None:
    words = ["convert", model, tmp_path / "out", "--to", "llama", "--max-shard-size"]
    assert "expected a size, such as 200MB" in mm_cli(*words, "lots", code=2).err
    assert "model-00001-of-0000" in mm_cli(*words, "1MB").out
