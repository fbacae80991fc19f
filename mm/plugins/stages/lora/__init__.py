"""The stage `lora`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the fine-tuned model of `sft`."""
    yield StageSpec(
        name="lora",
        summary="Train a LoRA adapter on conversations: a new skill beside unchanged weights.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="lora",
        needs=("run:sft",),
        gives=("run:lora",),
        defaults={"data": ("skills:lora",)},
        presets=("all",),
    )
