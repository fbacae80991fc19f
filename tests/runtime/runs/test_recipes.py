"""--config: files, recipes and their tables."""

from __future__ import annotations

from pathlib import Path

import pytest

import mm
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.runtime.runs.recipes import config_layer
from mm.testing.pytest_plugin import CommandLine, Plugins

RECIPE = """
from pathlib import Path

from mm.contracts import RecipeSpec, hookimpl

TOML = Path(__file__).with_name("mine.toml")

@hookimpl
def mm_recipes():
    yield RecipeSpec(name="mine", summary="Mine.", target=f"{__name__}:TOML")
"""
TABLES = """
seed = 7

[dense]
hidden_size = 64

[pretrain]
learning_rate = 1e-3
seed = 8

[full_sft]
epochs = 3

[lora]
lora_rank = 4

[other]
epochs = 5
"""


@pytest.fixture
def file(mm_workspace: Path) -> Path:
    path = mm_workspace / "mine.toml"
    path.write_text(TABLES)
    return path


def values(plugins: PluginManager, config: str) -> dict[str, object]:
    layer = config_layer(plugins, config)
    assert layer.origin == config
    return dict(layer.values)


def test_a_table_is_one_training_with_what_is_common(file: Path, installed: PluginManager) -> None:
    # neither the tables of other trainings, nor the value above the tables that this one has too
    parts = {"dense_hidden_size": 64, "other_epochs": 5}
    assert values(installed, "mine.toml:pretrain") == {"algo": "pretrain", "seed": 8, "learning_rate": 1e-3, **parts}
    assert values(installed, f"{file}:full_sft") == {"algo": "sft", "seed": 7, "epochs": 3, **parts}
    assert values(installed, "mine.toml:lora") == {"algo": "lora", "seed": 7, "lora_rank": 4, **parts}
    assert values(installed, "mine.toml:other") == {"seed": 7, "epochs": 5, "dense_hidden_size": 64}


def test_without_a_table_it_is_the_whole_file(file: Path, installed: PluginManager) -> None:
    found = values(installed, "mine.toml")
    assert (found["seed"], found["pretrain_seed"], found["dense_hidden_size"], found["lora_lora_rank"]) == (7, 8, 64, 4)
    colon = file.rename(file.with_name("of:pretrain"))
    assert values(installed, str(colon)) == found


@pytest.mark.parametrize(("config", "told"), [
    ("mine.toml:pretrian", r"--config mine\.toml:pretrian: no table \[pretrian\]\. Did you mean 'pretrain'\? Tables: dense, pre"),
    ("minimind4:grpo", r"--config minimind4: there is no such file\. Unknown recipe 'minimind4'\. Did you mean"),
    ("none.toml:grpo", r"--config none\.toml: No such file"),
    ("./minimind3:grpo", r"--config minimind3: No such file"),
])  # fmt: skip
def test_what_is_not_there_is_named(config: str, told: str, file: Path, installed: PluginManager) -> None:
    with pytest.raises(UsageError, match=told):
        config_layer(installed, config)


def test_a_plugin_brings_a_recipe(file: Path, mm_plugins: Plugins) -> None:
    (file.parent / "recipes.py").write_text(RECIPE)
    found = mm_plugins(file.parent / "recipes.py")
    assert values(found, "mine:pretrain") == values(found, "mine.toml:pretrain")
    file.write_text("[pretrain")
    with pytest.raises(UsageError, match="not valid TOML"):
        config_layer(found, "mine:pretrain")


def test_a_whole_recipe_for_one_training_is_told_its_tables(
    mm_workspace: Path, installed: PluginManager, mm_cli: CommandLine
) -> None:
    told = mm_cli("train", "--config", "minimind3", "--dry-run", code=2).err
    assert "--config minimind3 has a table for each training: name one, as in --config minimind3:pretrain." in told
    assert "Tables: pretrain, sft, lora, dpo, distill, ppo, grpo, agent." in told
    with pytest.raises(UsageError, match=r"as in --config minimind3:grpo\. Tables: pretrain, sft, lora, dpo"):
        mm.plan("grpo", config="minimind3", plugins=installed, quiet=True)
    (mm_workspace / "part.toml").write_text("[lora]\nrank = 4\n")  # the options of a part are no training
    assert "Missing option --algo" in mm_cli("train", "--config", "part.toml", "--dry-run", code=2).err


def test_python_and_the_command_line_take_a_table_without_an_algorithm(
    mm_workspace: Path, installed: PluginManager, mm_cli: CommandLine
) -> None:
    options = {"arch": "dense", "preset": "tiny", "data": "skills", "reward": "length"}
    plan = mm.plan(config="minimind3:grpo", plugins=installed, quiet=True, **options)
    settings = plan.values["settings"]
    assert (settings["algo"], settings["learning_rate"], settings["open_thinking"]) == ("grpo", 3e-7, 0.9)
    assert plan.values["sources"]["learning_rate"] == "minimind3:grpo"
    assert mm.plan("rloo", config="minimind3:pretrain", plugins=installed, quiet=True, **options).values["algorithm"] == "rloo"
    shown = mm_cli("train", "--config", "minimind3:agent", "--help").out
    assert "--max-total-tokens INT" in shown
    assert "pretrain, sft, lora, dpo, distill, ppo, grpo, agent" in mm_cli("plugins", "minimind3").out
