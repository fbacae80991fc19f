"""Learning from one's own completions: what is drawn, what is learned from it, and that it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import mm
from mm.core.contracts import Reward
from mm.core.data.rows import Row
from mm.core.errors import UsageError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import RewardSpec
from mm.testing import plugin_manager, tiny_run

ROWS = [{"prompt": f"say {word}"} for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
TINY = {"num_generations": 4, "max_new_tokens": 8, "reward": "vowels", "global_batch_size": 4, "threads": 1, "log_interval": 1}


class Vowels(Reward):
    """The share of vowels in a completion."""

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    yield RewardSpec(name="vowels", summary="Vowels.", target=f"{__name__}:Vowels")


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return plugin_manager(__name__)


def train(plugins: PluginManager, folder: Path, algo: str = "grpo", **options: Any) -> Any:
    return tiny_run(folder, algo, plugins=plugins, rows=ROWS, **{**TINY, **options})


def logged(run: Any, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line and "learning_rate" in line]


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "reinforce-pp", "ppo", "spo")]


@pytest.mark.parametrize("algo", ["grpo", *_SLOW])
def test_each_raises_its_reward(algo: str, plugins: PluginManager, tmp_path: Path) -> None:
    more = {"num_generations": 16, "max_steps": 30, "learning_rate": 3e-3, "critic_learning_rate": 3e-3}
    if algo != "ppo":
        del more["critic_learning_rate"]
    if algo == "spo":
        more |= {"num_generations": 4, "global_batch_size": 16}
    run = train(plugins, tmp_path, algo, **more)
    rewards = logged(run, "reward")
    assert sum(rewards[-5:]) / 5 > 1.5 * sum(rewards[:5]) / 5
    assert max(logged(run, "engine_gap")) < 1e-4


@pytest.mark.parametrize("options", [
    {"algo": "grpo", "loss_type": "dapo", "dynamic_sampling": True, "passes": 2, "mini_batches": 2},
    {"algo": "ppo", "mini_batches": 2, "kl_target": 0.1},
    {"algo": "spo", "num_generations": 2},
], ids=["grpo", "ppo", "spo"])  # fmt: skip
def test_a_resume_goes_on_as_if_nothing_had_happened(options: dict[str, Any], plugins: PluginManager, tmp_path: Path) -> None:
    settings = {**options, "max_steps": 6, "run": "a", "learning_rate": 1e-3}
    whole = train(plugins, tmp_path / "whole", **settings)
    train(plugins, tmp_path / "cut", **settings, stop_after_steps=3)  # in the middle of a rollout's mini-batches
    cut = mm.train(options["algo"], resume=True, run="a", workspace=tmp_path / "cut", plugins=plugins, quiet=True)
    for name in ("loss", "reward", "kl"):
        assert logged(cut, name) == logged(whole, name)
    files = [next(run.checkpoints.glob("step-00000006")) / "model.safetensors" for run in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_samples_are_written_to_be_read(plugins: PluginManager, tmp_path: Path) -> None:
    run = train(plugins, tmp_path, samples_logged=3)
    lines = [json.loads(line) for line in (run.path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert "say " in lines[0]["prompt"] and lines[0]["rewards"].keys() == {"vowels"}
    assert abs(sum(line["reward"] for line in lines)) > 0 and all(line["tokens"] <= 8 for line in lines)


def test_a_weight_counts(plugins: PluginManager, tmp_path: Path) -> None:
    once = train(plugins, tmp_path / "once", max_steps=1)
    twice = train(plugins, tmp_path / "twice", max_steps=1, reward="vowels:2")
    assert logged(twice, "reward")[0] == pytest.approx(2 * logged(once, "reward")[0])
    assert logged(twice, "reward/vowels") == logged(once, "reward/vowels")


def test_what_cannot_be_is_said(plugins: PluginManager, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass --reward NAME"):
        train(plugins, tmp_path, reward=())
    with pytest.raises(UsageError, match=r"--reward vowels:x: expected NAME or NAME:WEIGHT"):
        train(plugins, tmp_path / "b", reward="vowels:x")
    with pytest.raises(UsageError, match="Unknown reward 'vowel'"):
        train(plugins, tmp_path / "c", reward="vowel")
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_no_reference_is_held_without_a_kl(plugins: PluginManager, tmp_path: Path) -> None:
    run = train(plugins, tmp_path, kl_coef=0.0)
    assert not logged(run, "kl")
    with pytest.raises(UsageError, match="No such option: --reference-from"):
        train(plugins, tmp_path / "b", kl_coef=0.0, reference_from="x")


def test_torch_draws_nothing(plugins: PluginManager, tmp_path: Path) -> None:
    """Completions come from keys, so the global generator stands where it stood."""
    torch.manual_seed(1)
    first = train(plugins, tmp_path / "a", max_steps=1)
    torch.manual_seed(2)
    torch.rand(7)
    second = train(plugins, tmp_path / "b", max_steps=1)
    assert (first.path / "rollouts.jsonl").read_bytes() == (second.path / "rollouts.jsonl").read_bytes()
