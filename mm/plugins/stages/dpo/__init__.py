"""The stage `dpo`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Continues the fine-tuned model of `sft`."""
    yield StageSpec(
        name="dpo",
        summary="Train on preferences between two answers.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="dpo",
        needs=("run:sft",),
        gives=("run:dpo",),
        presets=("all",),
    )
