"""The stage `dpo`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """The fine-tuned model, trained on."""
    yield StageSpec(
        name="dpo",
        summary="Learn which of two answers is preferred.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="dpo",
        needs=("run:sft",),
        gives=("run:dpo",),
        presets=("all",),
    )
