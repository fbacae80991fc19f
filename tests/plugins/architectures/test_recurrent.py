"""A model with a recurrent state, the example package's: it generates, trains by every way of learning, adapts and resumes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from safetensors.torch import load_file

import mm
from mm.contracts import Backend, Model, Request, Sampling, SupportsCache, SupportsTruncate
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec, AlgorithmSpec, ArchitectureSpec
from mm.core.workspace import RunFolder
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.testing import assert_passed, check_adapter, check_algorithm, check_part, plugin_manager, tiny_rows, tiny_run
from mm.testing.suites.model import small_model

SOURCE = Path(__file__).parents[3] / "examples" / "mm-example" / "src"
GREEDY = Sampling(temperature=0)
DRAWN = {"rows": drawing.PROMPTS, "reward": "vowels", "num_generations": 3, "max_new_tokens": 8}
OWN: dict[str, dict[str, Any]] = {"grpo": DRAWN, "ppo": DRAWN, "agent": {**drawing.AGENT, "rows": drawing.EPISODES}}
LEARNING = ["sft", "dpo", "grpo", "ppo"]


@pytest.fixture(scope="module")
def plugins() -> Iterator[PluginManager]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SOURCE))
        patch.setenv("PYTHONPATH", f"{SOURCE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        yield plugin_manager("mm_example.mingru", drawing)


@pytest.fixture(scope="module")
def workspace(plugins: PluginManager, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model to begin from."""
    folder = tmp_path_factory.mktemp("recurrent")
    tiny_run(folder, "pretrain", plugins=plugins, arch="mingru", run="base", max_steps=2, threads=1)
    return folder


@pytest.fixture
def model(plugins: PluginManager) -> Model:
    made = small_model(plugins.get(ArchitectureSpec, "mingru")).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(5)  # no near ties, and a wrong state shows
    return made


def train(workspace: Path, plugins: PluginManager, algo: str, **options: Any) -> RunFolder:
    settings = {"from_": "base", "max_steps": 3, "threads": 1, "log_interval": 1, "learning_rate": 1e-3}
    return tiny_run(workspace, algo, plugins=plugins, **settings | OWN.get(algo, {}) | options)


def ids_of(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(97, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def greedy(model: Model, ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """By full forwards."""
    found = list(ids)
    for _ in range(count):
        found.append(int(model(pack([Unit((Tokens(torch.tensor(found)),))]))[0][-1].argmax()))
    return tuple(found[len(ids) :])


def test_it_passes_the_kit(plugins: PluginManager) -> None:
    spec = plugins.get(ArchitectureSpec, "mingru")
    assert_passed(check_part(spec, plugins=plugins, module=plugins.owner(spec).value))
    assert_passed(check_adapter(plugins.get(AdapterSpec, "lora"), architecture="mingru", plugins=plugins))


def test_its_state_is_a_cache_that_cannot_be_cut(model: Model) -> None:
    assert isinstance(model, SupportsCache)
    cache = model.new_cache(3, 16)
    assert not isinstance(cache, SupportsTruncate) and cache.capacity is None
    assert model.config.max_position_embeddings is None


def test_a_conversation_continues_the_state_and_another_prompt_is_read_anew(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda batch, *rest: (read.append(batch.num_tokens), prefill(batch, *rest))[1])
    engine = LocalEngine(LocalConfig(slots=3), model, Backend())
    first = Request(ids=ids_of(10, 1), max_new_tokens=5, sampling=GREEDY)
    (answer,) = engine.generate([first])
    second = Request(ids=(*first.ids, *answer.ids, *ids_of(3, 2)), max_new_tokens=5, sampling=GREEDY)
    (continued,) = engine.generate([second])
    assert read == [10, 4]  # the last token of an answer is drawn, not yet read
    # nine of its ten tokens are known, but the state has read more than those
    shorter = Request(ids=(*first.ids[:9], 5), max_new_tokens=4, sampling=GREEDY)
    (other,) = engine.generate([shorter])
    assert read == [10, 4, 10]
    assert answer.ids == greedy(model, first.ids, 5) and continued.ids == greedy(model, second.ids, 5)
    assert other.ids == greedy(model, shorter.ids, 4)


def test_slots_and_company_change_nothing(model: Model) -> None:
    requests = [
        Request(ids=ids_of(n, n % 4), max_new_tokens=new, sampling=Sampling(temperature=0.9, top_p=0.9), key=(7, n, new))
        for n, new in ((3, 6), (8, 2), (8, 5), (5, 7), (11, 1), (3, 4))
    ]
    alone = [LocalEngine(LocalConfig(slots=1), model, Backend()).generate([request])[0] for request in requests]
    for slots in (2, 4):
        found = LocalEngine(LocalConfig(slots=slots), model, Backend()).generate(requests)
        assert [completion.ids for completion in found] == [completion.ids for completion in alone]


@pytest.mark.parametrize("algo", LEARNING)
def test_it_trains_and_resumes_to_the_bit(algo: str, workspace: Path, plugins: PluginManager) -> None:
    whole = train(workspace, plugins, algo, run=f"{algo}-whole")
    train(workspace, plugins, algo, run=f"{algo}-cut", stop_after_steps=2)
    cut = mm.train(algo, resume=True, run=f"{algo}-cut", workspace=workspace, plugins=plugins, quiet=True)
    lines = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    names = ["model.safetensors", *(["critic.safetensors"] if algo == "ppo" else [])]
    newest = [max(run.checkpoints.glob("step-*")) for run in (whole, cut)]
    for name in names:
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes()
    before = load_file(workspace / "runs/base/model/model.safetensors")
    after = load_file(whole.model / "model.safetensors")
    assert before.keys() == after.keys() and any(not before[name].equal(after[name]) for name in before)


def test_episodes_with_tools(workspace: Path, plugins: PluginManager) -> None:
    run = train(workspace, plugins, "agent", run="agent", stop_after_steps=1)
    assert (run.path / "rollouts.jsonl").read_text()


def test_lora_adapts_what_the_architecture_names(workspace: Path, plugins: PluginManager) -> None:
    run = train(workspace, plugins, "sft", adapter="lora", run="adapted")
    names = load_file(run.model / "adapter" / "adapter_model.safetensors").keys()
    assert {name.split(".")[-3] for name in names} == {"candidate", "gate", "output"}
    before, after = (load_file(workspace / f"runs/{name}/model/model.safetensors") for name in ("base", "adapted"))
    moved = {name.split(".")[-2] for name in before if not before[name].equal(after[name])}
    assert moved == {"candidate", "gate", "output"}


def test_it_is_measured_and_answers(workspace: Path, plugins: PluginManager) -> None:
    run = train(workspace, plugins, "sft", run="measured", eval_ratio=0.3, samples=1, dtype="bf16", activation_checkpointing=True)
    line = json.loads((run.path / "samples.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 3 and run.manifest["state"] == "finished"
    opened = mm.load("measured", workspace=workspace, plugins=plugins, backend="cpu", dtype="fp32")
    chat = [{"role": "user", "content": tiny_rows("chat")[0]["messages"][0]["content"]}]
    said = opened.generate(chat, max_new_tokens=6, temperature=0)
    assert said.ids == greedy(opened.loaded.model, tuple(opened.loaded.tokenizer.encode_prompt(chat)), len(said.ids))
    assert not [note for note in opened.backend.notes if "slow" in note]


@pytest.mark.slow
@pytest.mark.parametrize("algo", [*LEARNING, "agent"])
def test_every_way_of_learning_passes_with_it(algo: str, plugins: PluginManager) -> None:
    spec = plugins.get(AlgorithmSpec, algo)
    assert_passed(check_algorithm(spec, architecture="mingru", plugins=plugins, module=plugins.owner(spec).value))
