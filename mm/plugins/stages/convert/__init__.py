"""The stage `convert`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Exports the model of `sft` to a Hugging Face folder."""
    yield StageSpec(
        name="convert",
        summary="Export the trained model to a Hugging Face folder.",
        target="mm.plugins.stages.convert.stage:Convert",
        needs=("run:sft",),
        gives=("export",),
        after=("report",),
        presets=("all", "core", "serve"),
    )
