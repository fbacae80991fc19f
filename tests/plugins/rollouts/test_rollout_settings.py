"""Settings of learning from one's own completions: each loss has its own usual ones, and one that nothing uses is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mm
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.plugins.algorithms.grpo import GrpoConfig
from mm.plugins.algorithms.rloo import RlooConfig
from mm.plugins.algorithms.spo import SpoConfig

pytestmark = pytest.mark.mm_plugins("drawing")


def plan(plugins: PluginManager, folder: Path, algo: str, **options: Any) -> str:
    settings = {"arch": "dense", "preset": "tiny", "data": "skills", "reward": "vowels", "workspace": folder, **options}
    return mm.plan(algo, plugins=plugins, **settings)


UNUSED: list[tuple[str, dict[str, Any], str]] = [
    ("grpo", {"num_generations": 1}, "--num-generations: .* at least 2"),
    ("rloo", {"num_generations": 1}, "--num-generations: .* at least 2"),
    ("agent", {"num_generations": 1}, "--num-generations: .* at least 2"),
    ("spo", {"dynamic_sampling": True}, "--dynamic-sampling: .* with --num-generations 1"),
    ("reinforce-pp", {"dynamic_sampling": True, "num_generations": 1}, "--dynamic-sampling: .* with --num-generations 1"),
    ("grpo", {"most_resamples": 2}, "--most-resamples: .* needs --dynamic-sampling"),
    ("grpo", {"kl_coef": 0.0, "kl_estimator": "k2"}, "--kl-estimator: .* needs a --kl-coef above 0"),
    ("ppo", {"kl_coef": 0.0, "kl_target": 0.1}, "--kl-target: .* needs a --kl-coef above 0"),
    ("ppo", {"kl_coef": 0.0, "kl_in": "loss"}, "--kl-in: .* needs a --kl-coef above 0"),
    ("ppo", {"kl_stop": "none", "kl_stop_estimator": "k2"}, "--kl-stop-estimator: .* needs a --kl-stop"),
    ("grpo", {"scale_rewards": "none", "deviation": "population"}, "--deviation: .* divided by a deviation"),
    ("grpo", {"loss_type": "dr_grpo", "deviation": "sample"}, "--deviation: .* divided by a deviation"),
    ("grpo", {"loss_type": "cispo", "clip_low": 0.2}, "--clip-low: .* not for --loss-type cispo"),
    ("grpo", {"overlong_buffer": 500, "max_new_tokens": 8}, "--overlong-buffer: .* longer than a completion"),
    ("spo", {"value_tracker": "global", "explore": 0.1}, "--explore: .* drawn by uncertainty"),
    ("spo", {"prioritised": False, "explore": 0.1}, "--explore: .* drawn by uncertainty"),
    ("spo", {"value_tracker": "global", "prioritised": False}, "--prioritised: .* all prompts have the same priority"),
    ("spo", {"rho_high": 0.8}, "--rho-high: .* below the least share, --rho-low 0.875"),
    ("spo", {"reward_low": 1.0}, "--reward-low: .* must be below --reward-high 1"),
    *((algo, {"scale_rewards": "batch"}, "--scale-rewards is an option of") for algo in ("rloo", "reinforce-pp", "spo", "ppo")),
    *((algo, {"repetition_penalty": 1.1}, "--repetition-penalty: refused in a rollout") for algo in ("grpo", "ppo", "agent")),
    ("spo", {"presence_penalty": 1.0}, "--presence-penalty: refused .* penalised distribution"),
    ("rloo", {"frequency_penalty": 1.0}, "--frequency-penalty: refused .* penalised distribution"),
    ("grpo", {"stop": ("x",)}, "--stop: refused in a rollout.* no end token"),
    *((algo, {"tool": ("calculate",)}, "such option: --tool") for algo in ("grpo", "rloo", "ppo", "spo")),
]


@pytest.mark.parametrize(("algo", "options", "told"), UNUSED, ids=[f"{algo} {' '.join(given)}" for algo, given, _ in UNUSED])
def test_what_nothing_would_use_is_refused(
    algo: str, options: dict[str, Any], told: str, plugins: PluginManager, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        plan(plugins, tmp_path, algo, **options)


def test_what_is_used_is_taken(plugins: PluginManager, tmp_path: Path) -> None:
    plan(plugins, tmp_path, "grpo", dynamic_sampling=True, most_resamples=0, kl_estimator="k2", scale_rewards="batch")
    plan(plugins, tmp_path, "grpo", loss_type="cispo", clip_high=4.0, overlong_buffer=8, max_new_tokens=8)
    plan(plugins, tmp_path, "reinforce-pp", num_generations=1)
    plan(plugins, tmp_path, "spo", prioritised=True, explore=0.0, rho_low=0.5)
    plan(plugins, tmp_path, "spo", value_tracker="global", rho_high=0.8)
    plan(plugins, tmp_path, "ppo", kl_target=0.1, clip_low=0.1)
    assert "calculate" in plan(plugins, tmp_path, "agent", tool=("calculate",), reward=("gt",))


def test_each_loss_has_its_papers_bounds() -> None:
    found = {loss: GrpoConfig(loss_type=loss).bounds for loss in ("grpo", "dr_grpo", "dapo", "cispo", "gspo")}
    assert found == {
        "grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "cispo": (1.0, 0.2), "gspo": (0.0003, 0.0004),
    }  # fmt: skip
    assert GrpoConfig(loss_type="gspo", clip_low=0.0, clip_high=0.1).bounds == (0.0, 0.1)
    assert (SpoConfig().bounds, RlooConfig().bounds) == ((0.2, 0.28), (0.2, 0.2))


def test_each_tracker_forgets_as_its_source_says() -> None:
    assert (SpoConfig().least_kept, SpoConfig(value_tracker="global").least_kept) == (0.875, 0.5)
    assert SpoConfig(rho_low=0.6).least_kept == 0.6
