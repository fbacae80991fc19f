"""`--skip-failed-rewards`: a completion that a reward failed at is kept, said and left out of what is learned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import drawing
import pytest
from run_files import lines, logged

from mm.contracts import Reward
from mm.core.hooks import hookimpl
from mm.core.records import RewardSpec
from mm.plugins.commands.runs.rollout_samples import sample_text
from mm.runtime.nn.batch import Unit
from mm.runtime.text.rows import Row
from mm.runtime.training.rollouts import rollout
from mm.runtime.training.rollouts.experience import Experience
from mm.testing.pytest_plugin import Train


class Touchy(Reward):
    """1, and an error where a completion has an odd number of characters."""

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        if any(len(text) % 2 for text in completions):
            raise ValueError("an odd number")
        return [1.0] * len(rows)


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    yield RewardSpec(name="touchy", summary="Touchy.", target=f"{__name__}:Touchy")


pytestmark = [pytest.mark.mm_plugins("drawing"), pytest.mark.mm_train(rows=drawing.PROMPTS)]


@pytest.mark.parametrize("algo", ["grpo", "rloo", "reinforce-pp", "ppo", "spo"])
def test_nothing_is_learned_from_a_completion_whose_reward_failed(
    mm_train: Train, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    learned, assign = list[int](), rollout.assign_mini_batches

    def assigning(experience: Sequence[Experience], *rest: Any) -> list[list[Unit]]:
        learned.append(len(experience))
        return assign(experience, *rest)

    monkeypatch.setattr(rollout, "assign_mini_batches", assigning)
    options = {"reward": ["vowels", "touchy"], "skip_failed_rewards": True, "max_new_tokens": 8, "samples_logged": 99}
    options |= {"num_generations": 6, "global_batch_size": 4, "max_steps": 2, "log_interval": 1}
    options |= {"passes": 1, "mini_batches": 1}
    run = mm_train(algo, **drawing.SMALL, **options)
    samples = lines(run, "rollouts.jsonl")
    for sample in samples:
        assert sample["failed"].keys() == ({"touchy"} if sample["rewards"]["touchy"] is None else set())
    failed, fine = ([s for s in samples if bool(s["failed"]) == wanted] for wanted in (True, False))
    assert {s["step"] for s in failed} == {1, 2} and len(samples) == 48
    assert all(re.match(r"ValueError: an odd number \(test_failed_rewards.py:\d+\)", s["failed"]["touchy"]) for s in failed)
    assert "touchy failed" in sample_text(failed[0]) and not any(s["advantage"] for s in failed)
    assert learned == [sum(s["step"] == step for s in fine) for step in (1, 2)]
    line = logged(run)[0]
    assert line["reward"] == pytest.approx(mean(s["reward"] for s in fine if s["step"] == 1))
    assert line["failed_rewards"] == mean(bool(s["failed"]) for s in samples if s["step"] == 1)
    if algo == "grpo":  # the others of a group are compared among themselves
        assert all(sum(s["advantage"] for s in fine if s["row"] == row) == pytest.approx(0, abs=1e-9) for row in range(8))
    (note,) = (note for note in run.manifest["notes"] if note.startswith("reward touchy failed"))
    assert re.search(r"tiny_rows\.jsonl:\d: ValueError: an odd number", note)


def test_a_rollout_of_nothing_but_failures_moves_no_weight(mm_train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def never(rows, completions):\n    raise RuntimeError('down')\n")
    options = {"reward": "python", "python_function": "mine.py:never", "skip_failed_rewards": True, "max_new_tokens": 4}
    options |= {"num_generations": 2, "passes": 2, "mini_batches": 2, "weight_decay": 0.0, "max_steps": 4, "log_interval": 1}
    for algo in ("grpo", "ppo"):
        run = mm_train(algo, run=algo, **options)
        assert run.manifest["state"] == "finished"
        norms = [value for line in lines(run) for name, value in line.items() if name.endswith("grad_norm")]
        assert len(norms) >= 4 and not any(norms)
