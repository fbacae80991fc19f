"""What an algorithm is compared by that draws its completions: the held-out reward, of which more is better."""

from __future__ import annotations

from pathlib import Path

import drawing
import pytest
from run_files import held_out, weights

import mm
from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder
from mm.testing.pytest_plugin import Train

# long completions are cut off, and few of them; what they earn goes up and down
pytestmark = [
    pytest.mark.mm_plugins("drawing"),
    pytest.mark.mm_train(
        "grpo", rows=drawing.PROMPTS, num_generations=4, max_new_tokens=8, global_batch_size=2, learning_rate=3e-2,
        eval_ratio=0.5, reward="vowels", run="a", max_steps=8, eval_interval=1, **drawing.SMALL,
    ),
]  # fmt: skip


def measured(run: RunFolder) -> dict[int, float]:
    return {line["step"]: line["held_out/reward"] for line in held_out(run)}


def test_the_model_with_the_highest_reward_is_kept(mm_train: Train) -> None:
    run = mm_train(keep_best=True, save_interval=1, keep_checkpoints=9)
    rewards = measured(run)
    best = max((step for step in rewards if step), key=rewards.__getitem__)
    assert min(rewards.values()) < rewards[best]
    assert run.manifest["best"] == {"step": best, "reward": rewards[best], "model": "a@best"}
    assert weights(run.best) == weights(run.checkpoints / f"step-{best:08}")


def test_a_training_without_more_reward_ends(mm_train: Train, plugins: PluginManager, tmp_path: Path) -> None:
    whole = mm_train(patience=2, min_delta=9.0, run="whole")
    mm_train(patience=2, min_delta=9.0, stop_after_steps=2)
    for run in (whole, mm.train("grpo", resume=True, run="a", workspace=tmp_path, plugins=plugins, quiet=True)):
        rewards = measured(run)
        assert sorted(rewards) == [0, 1, 2, 3] and run.manifest["state"] == "finished"
        said = f"early stopping: nothing better than held-out reward {rewards[1]:.4g} (step 1) in 2 evaluations"
        assert run.manifest["stop_reason"] == said
