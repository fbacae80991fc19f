"""The stage `reason`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the fine-tuned model of `sft`."""
    yield StageSpec(
        name="reason",
        summary="Fine-tune with a larger weight on the think and answer tags: longer reasoning.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="reason",
        needs=("run:sft",),
        gives=("run:reason",),
        defaults={"data": ("skills:reason",)},
        presets=("all",),
    )
