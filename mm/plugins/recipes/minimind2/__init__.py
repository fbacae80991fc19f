"""The recipe `minimind2`."""

from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import RecipeSpec

TOML = Path(__file__).with_name("recipe.toml")


@hookimpl
def mm_recipes() -> Iterable[RecipeSpec]:
    """The settings of the second generation's scripts (fzkun/minimind-ascend, commit ad28a1b)."""
    yield RecipeSpec(
        name="minimind2",
        summary="MiniMind 2's settings: pretrain, sft, lora, dpo, reason, distill, ppo, grpo, spo.",
        target="mm.plugins.recipes.minimind2:TOML",
    )
