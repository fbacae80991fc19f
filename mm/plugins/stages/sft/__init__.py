"""The stage `sft`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the model of `pretrain` on conversations."""
    yield StageSpec(
        name="sft",
        summary="Fine-tune the pretrained model on conversations: it learns to answer.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="sft",
        needs=("run:pretrain",),
        gives=("run:sft",),
        presets=("all", "core", "rl"),
        aliases=("full_sft",),
    )
