"""Exported files in llama.cpp (npm's node-llama-cpp; `make engines`): the same tokens and log-probabilities as our own model."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_models import exported, made
from llama_cpp import difference, reply, run

import mm
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.runtime.devices.backend import Backend
from mm.runtime.models.convert import convert
from mm.runtime.models.finding import find_model
from mm.runtime.models.folder import LoadedModel, load_model_folder
from mm.runtime.text.tokenizer import Tokenizer

pytestmark = pytest.mark.engines
ROOT = Path(__file__).parents[2]
KINDS = {
    "2": ("dense", "tiny"), "2-bias": ("dense", "tiny2-bias"), "3": ("dense", "tiny3"), "2-moe": ("moe", "tiny"),
    "3-moe": ("moe", "tiny3"),
}  # fmt: skip
QUESTIONS = ("What is 3 + 4?", "你好，你会做什么？", "What is the capital of France? Answer in one word.")
COUNT = 32
# of our two likeliest tokens: closer ones may change places by rounding
TIE = 1e-3
LARGEST = 2e-4  # difference of a log-probability; float32 weights and cache on both sides
# of the mean difference on a trained model, by type
MEANS = {"fp16": 0.01, "bf16": 0.05, "q8_0": 0.05, "q5_1": 0.3, "q5_0": 0.3, "q4_1": 1.0, "q4_0": 1.0}
YARN = {"rope_scaling_factor": 4.0, "rope_original_positions": 64, "rope_theta": 1e4}
SCALED = {
    "yarn": ("2", YARN),
    "yarn with an attention factor": ("2", {**YARN, "rope_attention_factor": 1.0}),
    "yarn of generation 3": ("3", YARN),
    "yarn with experts": ("2-moe", YARN),
    "yarn with experts of generation 3": ("3-moe", YARN),
    "linear": ("2", {"rope_scaling_factor": 4.0, "rope_type": "linear"}),
    "linear of generation 3": ("3", {"rope_scaling_factor": 4.0, "rope_type": "linear"}),
    "llama3": ("2", {"rope_scaling_factor": 8.0, "rope_type": "llama3", "rope_original_positions": 128, "rope_theta": 1e4}),
    "heads of 24": ("2", {"head_dim": 24}),
    "heads of 30": ("3", {"head_dim": 30}),
    "unscaled weights of experts": ("2-moe", {"norm_topk_prob": False, "tie_word_embeddings": False}),
    "a wide shared expert": ("2-moe", {"shared_expert_intermediate_size": 96}),
}  # fmt: skip


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return PluginManager.discover(environ={})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def trained(workspace: Workspace, plugins: PluginManager) -> dict[str, LoadedModel]:
    """A small trained model of each kind."""
    found = {}
    few = {"max_steps": 60, "global_batch_size": 8, "max_length": 256, "eval_ratio": 0.0, "learning_rate": 5e-3}
    for name, (arch, preset) in KINDS.items():
        mm.train(
            "sft", arch=arch, preset=preset, tokenizer="default", data="skills", run=name, backend="cpu", dtype="fp32",
            workspace=workspace.path, quiet=True, **few,
        )  # fmt: skip
        found[name] = load_model_folder(plugins, find_model(name, workspace), Backend())
    return found


def test_trained_models_say_the_same_in_llama_cpp(
    trained: dict[str, LoadedModel], workspace: Workspace, plugins: PluginManager, tmp_path: Path
) -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "README_zh.md")]
    texts = [text for page in pages for text in page.split("\n") if text]
    texts += ["a  1", "\u3000\u3000你好 2026", "<think>\n好\n</think>", "<|im_start|>user\n1 + 1?<|im_end|>", " \t\n  ①½ 🙂"]
    assert len(texts) > 200
    files = []
    for name, loaded in trained.items():
        prompts = [loaded.tokenizer.encode_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
        path = convert(plugins, name, tmp_path / f"{name}.gguf", workspace=workspace)
        files.append((path, [reply(loaded, prompt, COUNT) for prompt in prompts]))
    found = run(files, texts, COUNT, tmp_path)
    for (name, loaded), (_, replies), result in zip(trained.items(), files, found["results"], strict=True):
        assert result["ids"] == [loaded.tokenizer.encode(text) for text in texts]
        told = difference(replies, result)
        print(f"{name}: {told.equal} of {COUNT} tokens, log-probabilities within {told.largest:.1e}, {len(texts)} texts")
        for own, equal in zip(replies, told.equal, strict=True):
            assert equal == COUNT or own.tie_before(equal, TIE), (name, equal)
        assert told.largest < LARGEST, name


def test_every_type_is_read(
    trained: dict[str, LoadedModel], workspace: Workspace, plugins: PluginManager, tmp_path: Path
) -> None:
    loaded = trained["3"]
    replies = [reply(loaded, loaded.tokenizer.encode_prompt([{"role": "user", "content": q}]), COUNT) for q in QUESTIONS]
    files = []
    for kind in MEANS:
        option = {"dtype": kind} if kind in ("fp16", "bf16") else {"quantise": kind}
        files.append((convert(plugins, "3", tmp_path / f"{kind}.gguf", workspace=workspace, **option), replies))
    found = run(files, [], COUNT, tmp_path)
    for (path, _), (kind, bound), result in zip(files, MEANS.items(), found["results"], strict=True):
        told = difference(replies, result)
        print(f"{kind}: {told.equal} of {COUNT} tokens, log-probabilities {told.mean:.1e} off, {path.stat().st_size:,} bytes")
        assert told.mean < bound, kind


def test_rotary_scaling_heads_and_experts_are_computed_alike(plugins: PluginManager, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load()
    prompt = [20 + 17 * i % 6000 for i in range(280)]
    files = []
    for number, (kind, changes) in enumerate(SCALED.values()):
        sizes = {"num_hidden_layers": 2, "max_position_embeddings": 2048}
        loaded = made(kind, plugins, tokenizer, number, **sizes, **changes)
        files.append((exported(plugins, loaded, tmp_path / f"{number}.gguf"), [reply(loaded, prompt, 4)]))
    found = run(files, [], 4, tmp_path)
    for name, (_, replies), result in zip(SCALED, files, found["results"], strict=True):
        told = difference(replies, result)
        print(f"{name}: log-probabilities within {told.largest:.1e}")
        assert told.largest < LARGEST, name
