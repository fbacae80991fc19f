"""The stage `eval`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Measures the skills of every trained model and the effect of each training, plots its curves, prints conversations."""
    yield StageSpec(
        name="eval",
        summary="Ask every trained model questions that it has not seen, and write a report.",
        target="mm.plugins.stages.eval.stage:Evaluate",
        needs=("run:pretrain", "run:sft"),
        gives=("report",),
        after=("run:*",),
        presets=("all", "core", "rl"),
    )
