"""The stage `eval`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """The skills before and after fine-tuning, a plot of the losses, sample conversations."""
    yield StageSpec(
        name="eval",
        summary="Measure the skills on held-out items, plot the losses, show samples.",
        target="mm.plugins.stages.eval.stage:Evaluate",
        needs=("run:pretrain", "run:sft"),
        gives=("report",),
        after=("run:*",),
        presets=("all", "core", "rl"),
    )
