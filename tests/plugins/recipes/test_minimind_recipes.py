"""MiniMind's recipes, held against the defaults of its training scripts (minimind-ascend ad28a1b, minimind d65ef2c)."""

from __future__ import annotations

from typing import Any

import pytest

from mm.core.config.composition import Composition
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import RecipeSpec, StageSpec
from mm.core.run import Run
from mm.runtime.runs.pipeline import _for_stage, check_options
from mm.runtime.runs.recipes import config_layer, tables_of

# stage: epochs, rows of a step, length of rows, learning rate
SUPERVISED = {
    "minimind2": {
        "pretrain": (1, 32 * 8, 340, 5e-4), "sft": (2, 16, 340, 1e-6), "lora": (50, 32, 340, 1e-4), "dpo": (1, 4, 1024, 4e-8),
        "reason": (1, 8, 720, 1e-6), "distill": (6, 32, 340, 5e-6), "ppo": (1, 2, 66, 8e-8), "grpo": (1, 2, 66, 8e-8),
        "spo": (1, 2 * 4, 66, 1e-7),
    },
    "minimind3": {
        "pretrain": (2, 32 * 8, 340, 5e-4), "sft": (2, 16, 768, 1e-5), "lora": (10, 32, 340, 1e-4), "dpo": (1, 4, 1024, 4e-8),
        "distill": (6, 32, 340, 5e-6), "ppo": (1, 2, 768, 3e-7), "grpo": (1, 2, 768, 3e-7), "agent": (1, 2, 1024, 3e-7),
    },
}  # fmt: skip
# stage: new tokens of a turn, completions, weight of the KL, top-p, share of opened thoughts. The advantages of spo, and so its
# KL, are a sixth of the script's
SAMPLED = {
    "minimind2": {"ppo": (1536, 1, 0.02, 1.0, None), "grpo": (1536, 8, 0.02, 1.0, None), "spo": (1536, 1, 0.02 / 6, 1.0, None)},
    "minimind3": {"ppo": (1024, 1, 0.02, 0.85, 0.9), "grpo": (1024, 6, 0.1, 0.85, 0.9), "agent": (768, 4, 0.1, 0.85, 0.1)},
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "minimind2:pretrain": {"arch": "dense", "preset": "minimind2-small"},
    "minimind3:pretrain": {"arch": "dense", "preset": "minimind3"},
    "minimind2:lora": {"adapter": "lora", "lora_rank": 8, "lora_target": ("q_proj", "o_proj"), "lora_init": "normal"},
    "minimind3:lora": {"adapter": "lora", "lora_rank": 16, "lora_target": ("q_proj", "o_proj"), "lora_init": "normal"},
    "minimind2:dpo": {"loss_type": "sigmoid_norm", "beta": 0.1},
    "minimind3:dpo": {"loss_type": "sigmoid", "beta": 0.15},
    "minimind2:reason": {
        "tag_weight": 10.0, "tag": ("<think>", "</think>", "<answer>", "</answer>"), "divide_by": "tokens",
    },
    "minimind2:distill": {"alpha": 0.5, "temperature": 1.5, "divergence": "forward"},
    "minimind3:distill": {"alpha": 0.5, "temperature": 1.5, "divergence": "forward"},
    "minimind2:ppo": {
        "critic_learning_rate": 8e-8, "clip_low": 0.1, "clip_high": 0.1, "value_coef": 0.5, "passes": 1, "kl_in": "loss",
        "format_lines": True,
    },
    "minimind3:ppo": {
        "critic_learning_rate": 5e-7, "clip_low": 0.2, "clip_high": 0.2, "value_coef": 0.5, "value_clip": 0.2, "passes": 2,
        "mini_batches": 1, "gamma": 1.0, "gae_lambda": 0.95, "kl_stop": 0.25, "reward": ("length", "repetition"),
        "kl_in": "loss", "kl_stop_estimator": "k2", "repetition_whole_words": True,
    },
    "minimind2:grpo": {
        "loss_type": "grpo", "reward": ("format", "tags"), "kl_estimator": "k3", "passes": 1, "format_lines": True,
        "loss_aggregation": "seq-mean-token-mean", "advantage_clip": 10.0, "whiten_advantages": True,
    },
    "minimind3:grpo": {
        "loss_type": "cispo", "clip_high": 4.0, "reward": ("length", "repetition"), "passes": 1, "deviation": "population",
        "loss_aggregation": "seq-mean-token-mean", "repetition_whole_words": True,
    },
    "minimind2:spo": {
        "value_tracker": "global", "kl_half_life": 0.06, "rho_low": 0.5, "rho_high": 0.96, "advantage_clip": pytest.approx(5 / 6),
        "reward_low": -3.0, "reward_high": 3.0, "normalise": False, "reward": ("format", "tags"),
        "format_lines": True, "loss_aggregation": "seq-mean-token-mean", "loss_type": "cispo",
    },
    "minimind3:agent": {
        "loss_type": "cispo", "clip_high": 4.0, "max_turns": 3, "max_total_tokens": 2500,
        "loss_aggregation": "seq-mean-token-mean", "deviation": "population", "reward": ("minimind-agent",),
    },
}  # fmt: skip
# of a recipe: the share of conversations that keep an empty think block
EMPTY_THINK = {"minimind2": 0.05, "minimind3": 0.2}
TRAININGS = [(recipe, stage) for recipe, stages in SUPERVISED.items() for stage in stages]


def resolved(plugins: PluginManager, recipe: str, stage: str) -> Run:
    given: dict[str, Any] = {"data": ["rows.jsonl"], "run": "r", "backend": "cpu"}
    given |= {"from": "start"} if stage != "pretrain" else {}
    given |= {"engine": "local"} if stage in SAMPLED[recipe] else {}
    layers = [Layer(origin="line", values=given), config_layer(plugins, f"{recipe}:{stage}")]
    return Composition(plugins, layers).resolve().run


@pytest.mark.parametrize(("recipe", "stage"), TRAININGS)
def test_a_recipe_has_the_scripts_settings(recipe: str, stage: str, installed: PluginManager) -> None:
    run = resolved(installed, recipe, stage)
    values = run.values()
    assert run.select.algo == stage
    names = ("epochs", "global_batch_size", "max_length", "learning_rate")
    assert tuple(values[name] for name in names) == SUPERVISED[recipe][stage]
    # torch's AdamW, and lr * (0.1 + 0.45 (1 + cos(pi t))) without warm-up
    adam = ("adam_beta1", "adam_beta2", "weight_decay", "clip_norm", "min_learning_rate_ratio", "warmup_ratio")
    assert tuple(values[name] for name in adam) == (0.9, 0.999, 0.01, 1.0, 0.1, 0.0)
    assert (values["optimizer"], values["schedule"]) == ("adamw", "cosine")
    if sampled := SAMPLED[recipe].get(stage):
        names = ("max_new_tokens", "num_generations", "kl_coef", "top_p", "open_thinking")
        assert tuple(values[name] for name in names) == pytest.approx(sampled)
        assert (values["temperature"], values["top_k"]) == (0.8, 50)
    assert {name: values[name] for name in OWN.get(f"{recipe}:{stage}", {})} == OWN.get(f"{recipe}:{stage}", {})


@pytest.mark.parametrize(("recipe", "stage"), TRAININGS)
def test_the_datasets_that_vary_rows_are_upstreams(recipe: str, stage: str, installed: PluginManager) -> None:
    """SFTDataset adds system turns and removes empty blocks, DPODataset removes blocks only. RLAIFDataset adds system turns in
    MiniMind 3. Those of the agent and of pretraining do neither."""
    values = resolved(installed, recipe, stage).values()
    chats = stage in ("sft", "lora", "reason", "distill")
    added = chats or (recipe == "minimind3" and stage in ("ppo", "grpo"))
    assert values["system_share"] == (0.2 if added else 0.0)
    assert len(values["system_text"]) == (10 if added else 0)
    if chats or stage == "dpo":
        assert values["empty_think_share"] == EMPTY_THINK[recipe]


def test_each_recipe_has_a_table_for_each_stage_and_no_other(installed: PluginManager) -> None:
    assert {spec.name: set(tables_of(spec)) for spec in installed.specs(RecipeSpec)} == {
        recipe: set(stages) for recipe, stages in SUPERVISED.items()
    }


@pytest.mark.parametrize("recipe", SUPERVISED)
def test_a_pipeline_takes_a_whole_recipe(recipe: str, installed: PluginManager) -> None:
    layer, stages = config_layer(installed, recipe), installed.specs(StageSpec)
    check_options(stages, installed, [layer])
    for spec in (spec for spec in stages if spec.name in SUPERVISED[recipe]):
        options = installed.load(StageSpec, spec.name).options(spec, installed)
        epochs, _, _, rate = SUPERVISED[recipe][spec.name]
        given = _for_stage(layer, spec, options).values
        assert (given["epochs"], given["learning_rate"]) == (epochs, rate)
        own = config_layer(installed, f"{recipe}:{spec.name}").values
        assert given == {key: value for key, value in own.items() if key != "algo"}
