"""The stage `ppo`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the fine-tuned model of `sft`."""
    yield StageSpec(
        name="ppo",
        summary="Reinforcement learning with a critic.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="ppo",
        needs=("run:sft",),
        gives=("run:ppo",),
        defaults={"reward": ("exact", "format:0.2"), "max_new_tokens": 64},
        presets=("all", "rl"),
    )
