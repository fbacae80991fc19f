"""Learning from one's own completions: what is drawn, what is learned from it, and that it can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from run_files import Line, lines, logged, series

import mm
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.training.rollouts.rollout import Rollout
from mm.testing.pytest_plugin import Train

pytestmark = [pytest.mark.mm_plugins("drawing"), pytest.mark.mm_train("grpo", rows=drawing.PROMPTS, **drawing.TINY)]


def samples(run: RunFolder) -> list[Line]:
    return lines(run, "rollouts.jsonl")


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "reinforce-pp", "ppo", "spo")]


@pytest.mark.parametrize("algo", ["grpo", *_SLOW])
def test_each_raises_its_reward(algo: str, mm_train: Train) -> None:
    more = {"num_generations": 16, "max_steps": 30, "learning_rate": 3e-3, "critic_learning_rate": 3e-3}
    if algo != "ppo":
        del more["critic_learning_rate"]
    if algo == "spo":
        more |= {"num_generations": 4, "global_batch_size": 16}
    run = mm_train(algo, **more)
    rewards = series(run, "reward")
    assert sum(rewards[-5:]) / 5 > 1.5 * sum(rewards[:5]) / 5
    assert max(series(run, "engine_gap")) < 1e-4


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
def test_a_resume_goes_on_as_if_nothing_had_happened(case: str, mm_train: Train, plugins: PluginManager, tmp_path: Path) -> None:
    algo = case.split()[0]
    settings = {**RESUMED[case], "max_steps": 6, "run": "a", "learning_rate": 1e-3, "samples_logged": 99}
    if algo == "agent":
        settings |= {"rows": drawing.EPISODES, "from_": drawing.caller(tmp_path).model}
    whole = mm_train(algo, workspace=tmp_path / "whole", **settings)
    mm_train(algo, workspace=tmp_path / "cut", **settings, stop_after_steps=3)  # in the middle of a rollout's mini-batches
    cut = mm.train(algo, resume=True, run="a", workspace=tmp_path / "cut", plugins=plugins, quiet=True)
    assert logged(cut) == logged(whole) and len(logged(whole)) == 6
    assert all({"policy_loss", "value_loss"} if algo == "ppo" else {"loss"} <= line.keys() for line in logged(whole))
    assert (cut.path / "rollouts.jsonl").read_bytes() == (whole.path / "rollouts.jsonl").read_bytes()
    folders = [run.checkpoints / "step-00000006" for run in (whole, cut)]
    weights = [{file.name: file.read_bytes() for file in folder.glob("*.safetensors")} for folder in folders]
    assert weights[0] == weights[1]
    assert weights[0].keys() == {"model.safetensors"} | ({"critic.safetensors"} if algo == "ppo" else set())
    if algo == "agent":
        assert {'"result"' in line["completion"] for line in samples(cut)} == {True, False}


def test_samples_are_written_to_be_read(mm_train: Train) -> None:
    run = mm_train(samples_logged=3)
    written = samples(run)
    assert [line["step"] for line in written] == [1, 1, 1, 2, 2, 2]  # as the screen counts them
    assert "say " in written[0]["prompt"] and written[0]["rewards"].keys() == {"vowels"}
    assert abs(sum(line["reward"] for line in written)) > 0 and all(line["tokens"] <= 8 for line in written)


def test_a_weight_counts(mm_train: Train, tmp_path: Path) -> None:
    once = mm_train(workspace=tmp_path / "once", max_steps=1)
    twice = mm_train(workspace=tmp_path / "twice", max_steps=1, reward="vowels:2")
    assert series(twice, "reward")[0] == pytest.approx(2 * series(once, "reward")[0])
    assert series(twice, "reward/vowels") == series(once, "reward/vowels")


def test_spo_says_what_lies_beyond_its_bounds(mm_train: Train) -> None:
    run = mm_train("spo", reward_high=0.15, samples_logged=99, max_steps=1)
    share = sum(line["reward"] > 0.15 for line in samples(run)) / len(samples(run))
    assert 0.1 < share < 1 and series(run, "reward_clamped") == pytest.approx([share])
    assert any(note.startswith("step 1: reward_clamped is") for note in run.manifest["notes"])
    assert series(mm_train("spo", run="wide"), "reward_clamped") == [0.0, 0.0]


def test_what_cannot_be_is_said(mm_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass --reward NAME"):
        mm_train(reward=())
    with pytest.raises(UsageError, match=r"--reward vowels:x: expected NAME or NAME:WEIGHT"):
        mm_train(workspace=tmp_path / "b", reward="vowels:x")
    for weight in ("nan", "-inf"):
        with pytest.raises(UsageError, match=f"--reward vowels:{weight}: expected .* finite number"):
            mm_train(workspace=tmp_path / "b", reward=f"vowels:{weight}")
    with pytest.raises(UsageError, match="Unknown reward 'vowel'"):
        mm_train(workspace=tmp_path / "c", reward="vowel")
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_no_reference_is_held_without_a_kl(mm_train: Train, tmp_path: Path) -> None:
    run = mm_train(kl_coef=0.0)
    assert not series(run, "kl")
    with pytest.raises(UsageError, match="No such option: --reference-from"):
        mm_train(workspace=tmp_path / "b", kl_coef=0.0, reference_from="x")


def test_torch_draws_nothing(mm_train: Train, tmp_path: Path) -> None:
    """Completions come from keys, so the global generator stands where it stood."""
    torch.manual_seed(1)
    first = mm_train(workspace=tmp_path / "a", max_steps=1)
    torch.manual_seed(2)
    torch.rand(7)
    second = mm_train(workspace=tmp_path / "b", max_steps=1)
    assert (first.path / "rollouts.jsonl").read_bytes() == (second.path / "rollouts.jsonl").read_bytes()


def test_a_mistake_before_the_first_step_leaves_the_name_free(mm_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gt"):
        mm_train(reward="gt", rows=[{"prompt": "Hello"}] * 8, run="half", max_steps=1)
    assert not (tmp_path / "runs/half").exists()
    mm_train(run="half", max_steps=1)


@pytest.mark.parametrize("algo", ["grpo", "ppo", "spo", "rloo", "reinforce-pp"])
def test_a_share_of_the_prompts_is_drawn_from_with_an_opened_thought(
    algo: str, mm_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: dict[int, set[tuple[int, ...]]] = {}
    log = Rollout._log

    def keep(self: Rollout, groups: Any, experience: Any) -> None:
        for sample in (sample for group in groups for sample in group):
            prompts.setdefault(sample.unit.row_index, set()).add(tuple(sample.ids[: sample.prompt_length]))
        log(self, groups, experience)

    monkeypatch.setattr(Rollout, "_log", keep)
    run = mm_train(algo, open_thinking=0.5, max_steps=4, num_generations=2, epochs=2, eval_ratio=0.0, run="thinks")
    tokenizer = Tokenizer.load(run.model)
    found = [{tokenizer.decode(ids, skip_special=False).rpartition("assistant\n")[2] for ids in row} for row in prompts.values()]
    assert all(len(row) == 1 for row in found)  # every completion of a prompt, in every epoch
    assert {text for row in found for text in row} == {"<think>\n", "<think>\n\n</think>\n\n"}
