"""The stage `sft`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """The pretrained model, fine-tuned on conversations."""
    yield StageSpec(
        name="sft",
        summary="Fine-tune the pretrained model on conversations.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="sft",
        needs=("run:pretrain",),
        gives=("run:sft",),
        presets=("all", "core", "rl"),
        aliases=("full_sft",),
    )
