"""Exported folders in vLLM on a CPU (`make engines`), in process and through its HTTP server: the same prompts, tokens and
log-probabilities as our own model."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch
from gguf_models import exported, made
from programs import PROGRAMS, differences, equal_tokens, job_of, python_of, run, some_chats
from torch import Tensor

from mm.core.plugins import PluginManager
from mm.core.records import ConverterSpec
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.repacker import Repacker
from mm.runtime.text.tokenizer import Tokenizer

pytestmark = pytest.mark.engines
FORMATS = {"2": "llama", "3": "qwen3", "2-moe": "qwen2-moe", "3-moe": "qwen3-moe"}
COUNT = 32
LARGEST = 2e-5  # difference of a log-probability
# (largest, mean) of quantised folders: of W8A8 with our activations rounded as the format says, in float32, where a number
# between two steps may go the other way; of W4A16 in bfloat16, which its kernels compute in
QUANTISED = {"w8a8": (0.05, 0.002), "w4a16": (0.12, 0.02)}


@pytest.fixture(scope="module")
def python() -> Path:
    return python_of("vllm")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load()


def model_of(kind: str, plugins: PluginManager, tokenizer: Tokenizer, **changes: object) -> LoadedModel:
    return made(kind, plugins, tokenizer, max_position_embeddings=4096, **changes)


@pytest.mark.parametrize("program", ["run_vllm", "run_vllm_server"])
@pytest.mark.parametrize("kind", FORMATS)
def test_prompts_tokens_and_log_probabilities_are_ours(
    kind: str, program: str, python: Path, installed: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded = model_of(kind, installed, tokenizer)
    assert loaded.config.head_size == 32
    job = job_of(loaded, exported(installed, loaded, tmp_path / "out", FORMATS[kind]), some_chats(7, 12), COUNT, stops=True)
    begin = time.perf_counter()
    found = run(python, program, job, tmp_path)
    seconds = time.perf_counter() - begin
    assert [told["ids"] for told in found["chats"]] == [own["ids"] for own in job["chats"]]
    counts, off = equal_tokens(job, found), differences(job, found)
    print(f"{kind}, {found['engine']}: {counts} tokens, log-probabilities within {max(off):.1e}, {seconds:.0f} s")
    assert max(off) < LARGEST
    for own, told in zip(job["chats"], found["chats"], strict=True):
        assert told["stop"] == ("stop" if told["reply"][-1] in job["stop"] else "length")
        assert len(told["reply"]) <= COUNT and own["reply"][0] == own["asked"][0][0]
    assert found["chats"][0]["stop"] == "stop" and len(found["chats"][0]["reply"]) <= COUNT // 2 + 1
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout  # the server is ended


@pytest.mark.parametrize("quantisation", QUANTISED)
@pytest.mark.parametrize("kind", FORMATS)
def test_quantised_folders_compute_with_the_weights_that_we_say(
    kind: str, quantisation: str, python: Path, installed: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    if kind.endswith("moe") and not torch.cpu._is_amx_tile_supported():
        pytest.skip("vLLM computes quantised experts on x86 with AMX only, which this CPU does not have")
    loaded = model_of(kind, installed, tokenizer)
    out = exported(installed, loaded, tmp_path / "out", "compressed-tensors", quantise=quantisation)
    repacker: Repacker = installed.load(ConverterSpec, "compressed-tensors")()
    converter = installed.load(ConverterSpec, FORMATS[kind])()
    weights = repacker.dequantised(out, out)
    assert weights is not None
    loaded.model.load_state_dict(converter.rules(loaded.config).to_ours(weights), strict=False)
    if quantisation == "w8a8":
        round_activations(loaded.model)
    job = job_of(loaded, out, some_chats(7, 12), COUNT)
    found = run(python, "run_vllm", job, tmp_path)
    off = sorted(differences(job, found))
    print(f"{kind} {quantisation}, {found['engine']}: within {off[-1]:.1e}, {sum(off) / len(off):.1e} on average")
    largest, mean = QUANTISED[quantisation]
    assert off[-1] < largest and sum(off) / len(off) < mean


def round_activations(model: torch.nn.Module) -> None:
    """Let every projection read what 8 bits hold of its input: for each token, steps of its largest number / 127."""

    def rounded(module: torch.nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        step = given[0].abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return ((given[0] / step).round() * step,)

    count = 0
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(rounded)
            count += 1
    assert count == 2 * 7


def test_the_servers_last_lines_are_told_when_it_ends(
    python: Path, installed: PluginManager, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """With heads of 24 the server says that it is healthy, and its engine ends at the first request."""
    loaded = made("2", installed, tokenizer, head_dim=24, max_position_embeddings=4096)
    job = job_of(loaded, exported(installed, loaded, tmp_path / "out", "llama"), some_chats(7, 12)[:1], 2)
    told = run(python, "run_vllm_server", job, tmp_path, code=1)["error"]
    print(told)
    assert "head_dim=24" in told and told.strip().splitlines()[-1].startswith("vLLM's server")
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout


def test_the_programs_import_nothing_of_mm() -> None:
    assert [path.name for path in PROGRAMS.glob("*.py") if "import mm" in (text := path.read_text()) or "from mm" in text] == []
