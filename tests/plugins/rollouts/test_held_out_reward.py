"""What an algorithm is compared by that draws its completions: the held-out reward, of which more is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import pytest

import mm
from mm.core.workspace import RunFolder
from mm.testing import tiny_run

LATER = {"max_steps": 8, "eval_interval": 1}


def train(workspace: Path, **options: Any) -> RunFolder:
    """Long completions are cut off, and few of them; what they earn goes up and down."""
    settings = {"num_generations": 4, "max_new_tokens": 8, "global_batch_size": 2, "threads": 1, "learning_rate": 3e-2}
    settings |= {"eval_ratio": 0.5, "reward": "vowels", "run": "a", **drawing.SMALL, **LATER, **options}
    return tiny_run(workspace, "grpo", plugins=drawing.plugins(), rows=drawing.PROMPTS, **settings)


def measured(run: RunFolder) -> dict[int, float]:
    lines = [json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["held_out/reward"] for line in lines if "held_out/reward" in line}


def test_the_model_with_the_highest_reward_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, keep_best=True, save_interval=1, keep_checkpoints=9)
    rewards = measured(run)
    best = max((step for step in rewards if step), key=rewards.__getitem__)
    assert min(rewards.values()) < rewards[best]
    assert run.manifest["best"] == {"step": best, "reward": rewards[best], "model": "a@best"}
    kept, saved = (path / "model.safetensors" for path in (run.best, run.checkpoints / f"step-{best:08}"))
    assert kept.read_bytes() == saved.read_bytes()


def test_a_training_without_more_reward_ends(tmp_path: Path) -> None:
    whole = train(tmp_path, patience=2, min_delta=9.0, run="whole")
    train(tmp_path, patience=2, min_delta=9.0, stop_after_steps=2)
    plugins = drawing.plugins()
    for run in (whole, mm.train("grpo", resume=True, run="a", workspace=tmp_path, plugins=plugins, quiet=True)):
        rewards = measured(run)
        assert sorted(rewards) == [0, 1, 2, 3] and run.manifest["state"] == "finished"
        said = f"early stopping: nothing better than held-out reward {rewards[1]:.4g} (step 1) in 2 evaluations"
        assert run.manifest["stop_reason"] == said
