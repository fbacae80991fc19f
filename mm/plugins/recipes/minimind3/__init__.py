"""The recipe `minimind3`."""

from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import RecipeSpec

TOML = Path(__file__).with_name("recipe.toml")


@hookimpl
def mm_recipes() -> Iterable[RecipeSpec]:
    """The settings of the third generation's scripts (jingyaogong/minimind, commit d65ef2c)."""
    yield RecipeSpec(
        name="minimind3",
        summary="MiniMind 3's settings: pretrain, sft, lora, dpo, distill, ppo, grpo, agent.",
        target="mm.plugins.recipes.minimind3:TOML",
    )
