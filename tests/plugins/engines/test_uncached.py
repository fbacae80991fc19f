"""Models without a cache: generated from by full forwards, and the tokens are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drawing
import plain_model
import pytest
import torch
from plain_model import Uncached

import mm
from mm.contracts import Backend, Model, Request, Sampling, SupportsCache
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.testing import plugin_manager, tiny_run
from mm.testing.suites.model import small_model


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return plugin_manager(plain_model, drawing)


def test_a_model_without_a_cache_generates_and_learns_by_reinforcement(
    plugins: PluginManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"plugins": plugins, "threads": 1, "max_steps": 2}
    tiny_run(tmp_path, "pretrain", arch="plain", preset="", run="base", **options)
    drawn = {"reward": "vowels", "num_generations": 3, "max_new_tokens": 8, "rows": drawing.PROMPTS}
    run = tiny_run(tmp_path, "grpo", from_="base", run="grpo", **options, **drawn)
    said = "generation is slow: Plain has no cache, so every token takes a forward over its whole document"
    assert run.manifest["notes"].count(said) == 1
    model = mm.load("grpo", workspace=tmp_path, plugins=plugins, backend="cpu", dtype="fp32")
    first, again = (model.generate("say one", max_new_tokens=6, temperature=0.8).ids for _ in range(2))
    assert first == again and model.backend.notes.count(said) == 1
    with pytest.raises(UsageError, match=r"ppo needs a critic .* of architecture 'plain' .* Plain\.set_outputs\(count\) is not"):
        tiny_run(tmp_path, "ppo", from_="base", run="ppo", **options, **drawn)
    assert not (tmp_path / "runs/ppo").exists()


@pytest.mark.parametrize("slots", [1, 3])
def test_a_request_gets_the_same_tokens_with_and_without_a_cache(slots: int, make_sharp: Callable[[], Model]) -> None:
    model = make_sharp()
    bare = Uncached(model).eval()
    assert isinstance(model, SupportsCache) and not isinstance(bare, SupportsCache)
    prompts = [torch.randint(97, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 9, 9, 5)]
    requests = [
        Request(ids=tuple(ids), max_new_tokens=7, sampling=Sampling(temperature=0.8 * (index > 0)), key=(1, index))
        for index, ids in enumerate([*prompts, prompts[1]])
    ]
    found, expected = (LocalEngine(LocalConfig(slots=slots), m, Backend()).generate(requests) for m in (bare, model))
    assert [c.ids for c in found] == [c.ids for c in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.fixture
def make_sharp(plugins: PluginManager) -> Callable[[], Model]:
    def make() -> Model:
        model = small_model(plugins.get(ArchitectureSpec, "dense")).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.mul_(5)  # no near ties
        return model

    return make
