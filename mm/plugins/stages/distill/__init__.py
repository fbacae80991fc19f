"""The stage `distill`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """The fine-tuned model, trained on."""
    yield StageSpec(
        name="distill",
        summary="Learn from a larger model's logits.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="distill",
        needs=("run:sft",),
        gives=("run:distill",),
        aliases=("distillation",),
    )
