"""The stage `reason`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """The fine-tuned model, trained on."""
    yield StageSpec(
        name="reason",
        summary="Fine-tune with a larger weight on the tags of thoughts and answers.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="reason",
        needs=("run:sft",),
        gives=("run:reason",),
        defaults={"data": ("skills:reason",)},
        presets=("all",),
    )
