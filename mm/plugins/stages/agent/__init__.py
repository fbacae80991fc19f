"""The stage `agent`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the fine-tuned model of `sft`."""
    yield StageSpec(
        name="agent",
        summary="Reinforcement learning over turns with tools.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="agent",
        needs=("run:sft",),
        gives=("run:agent",),
        presets=("all",),
        defaults={"reward": ("gt", "call-count"), "tool": ("calculate", "search", "time", "weather"), "max_new_tokens": 96},
    )
