"""The stage `grpo`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the fine-tuned model of `sft`."""
    yield StageSpec(
        name="grpo",
        summary="Reinforcement learning against the mean of a group.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="grpo",
        needs=("run:sft",),
        gives=("run:grpo",),
        defaults={"reward": ("exact", "format:0.2"), "max_new_tokens": 64},
        presets=("all", "rl"),
    )
