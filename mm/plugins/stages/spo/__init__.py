"""The stage `spo`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the fine-tuned model of `sft`."""
    yield StageSpec(
        name="spo",
        summary="Reinforcement learning against a tracked value.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="spo",
        needs=("run:sft",),
        gives=("run:spo",),
        defaults={"reward": ("exact", "format:0.2"), "reward_high": 1.1, "max_new_tokens": 64},
        presets=("all", "rl"),
    )
