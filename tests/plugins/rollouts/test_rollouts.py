"""Learning from one's own completions: what is drawn, what is learned from it, and that it can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch

import mm
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder
from mm.testing import tiny_run

TINY = {"num_generations": 4, "max_new_tokens": 8, "reward": "vowels", "global_batch_size": 4, "threads": 1, "log_interval": 1}


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return drawing.plugins()


def train(plugins: PluginManager, folder: Path, algo: str = "grpo", **options: Any) -> RunFolder:
    return tiny_run(folder, algo, plugins=plugins, **{"rows": drawing.PROMPTS, **TINY, **options})


def samples(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]


def logged(run: RunFolder, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line and "learning_rate" in line]


def figures(run: RunFolder) -> list[dict[str, Any]]:
    """Everything that was logged of each step but the time it took."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines if "learning_rate" in line]


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


RESUMED: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "dapo", "dynamic_sampling": True, "passes": 2, "mini_batches": 2},
    "grpo with experts": {**drawing.SMALL_EXPERTS, "passes": 2, "mini_batches": 2},
    "rloo": {"mini_batches": 2},
    "reinforce-pp": {"mini_batches": 2},
    "ppo": {"mini_batches": 2, "kl_target": 0.1},
    "spo": {"num_generations": 2},
    "spo for all prompts": {"num_generations": 2, "value_tracker": "global"},
    "agent": {**drawing.AGENT, "mini_batches": 2, "global_batch_size": 3},
}


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=pytest.mark.slow if case in ("rloo", "reinforce-pp") else ()) for case in RESUMED
])  # fmt: skip
def test_a_resume_goes_on_as_if_nothing_had_happened(case: str, plugins: PluginManager, tmp_path: Path) -> None:
    algo = case.split()[0]
    settings = {**RESUMED[case], "max_steps": 6, "run": "a", "learning_rate": 1e-3, "samples_logged": 99}
    if algo == "agent":
        settings |= {"rows": drawing.EPISODES, "from_": drawing.caller(tmp_path).model}
    whole = train(plugins, tmp_path / "whole", algo, **settings)
    train(plugins, tmp_path / "cut", algo, **settings, stop_after_steps=3)  # in the middle of a rollout's mini-batches
    cut = mm.train(algo, resume=True, run="a", workspace=tmp_path / "cut", plugins=plugins, quiet=True)
    assert figures(cut) == figures(whole) and len(figures(whole)) == 6
    assert all({"policy_loss", "value_loss"} if algo == "ppo" else {"loss"} <= line.keys() for line in figures(whole))
    assert (cut.path / "rollouts.jsonl").read_bytes() == (whole.path / "rollouts.jsonl").read_bytes()
    folders = [run.checkpoints / "step-00000006" for run in (whole, cut)]
    weights = [{file.name: file.read_bytes() for file in folder.glob("*.safetensors")} for folder in folders]
    assert weights[0] == weights[1]
    assert weights[0].keys() == {"model.safetensors"} | ({"critic.safetensors"} if algo == "ppo" else set())
    if algo == "agent":
        assert {'"result"' in line["completion"] for line in samples(cut)} == {True, False}


def test_samples_are_written_to_be_read(plugins: PluginManager, tmp_path: Path) -> None:
    run = train(plugins, tmp_path, samples_logged=3)
    lines = samples(run)
    assert [line["step"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert "say " in lines[0]["prompt"] and lines[0]["rewards"].keys() == {"vowels"}
    assert abs(sum(line["reward"] for line in lines)) > 0 and all(line["tokens"] <= 8 for line in lines)


def test_a_weight_counts(plugins: PluginManager, tmp_path: Path) -> None:
    once = train(plugins, tmp_path / "once", max_steps=1)
    twice = train(plugins, tmp_path / "twice", max_steps=1, reward="vowels:2")
    assert logged(twice, "reward")[0] == pytest.approx(2 * logged(once, "reward")[0])
    assert logged(twice, "reward/vowels") == logged(once, "reward/vowels")


def test_spo_says_what_lies_beyond_its_bounds(plugins: PluginManager, tmp_path: Path) -> None:
    run = train(plugins, tmp_path, "spo", reward_high=0.15, samples_logged=99, max_steps=1)
    share = sum(line["reward"] > 0.15 for line in samples(run)) / len(samples(run))
    assert 0.1 < share < 1 and logged(run, "reward_clamped") == pytest.approx([share])
    assert any(note.startswith("step 1: reward_clamped is") for note in run.manifest["notes"])
    assert logged(train(plugins, tmp_path, "spo", run="wide"), "reward_clamped") == [0.0, 0.0]


def test_what_cannot_be_is_said(plugins: PluginManager, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass --reward NAME"):
        train(plugins, tmp_path, reward=())
    with pytest.raises(UsageError, match=r"--reward vowels:x: expected NAME or NAME:WEIGHT"):
        train(plugins, tmp_path / "b", reward="vowels:x")
    for weight in ("nan", "-inf"):
        with pytest.raises(UsageError, match=f"--reward vowels:{weight}: expected .* finite number"):
            train(plugins, tmp_path / "b", reward=f"vowels:{weight}")
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


def test_a_mistake_before_the_first_step_leaves_the_name_free(plugins: PluginManager, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gt"):
        train(plugins, tmp_path, reward="gt", rows=[{"prompt": "Hello"}] * 8, run="half", max_steps=1)
    assert not (tmp_path / "runs/half").exists()
    train(plugins, tmp_path, run="half", max_steps=1)
