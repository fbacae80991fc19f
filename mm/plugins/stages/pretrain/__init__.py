"""The stage `pretrain`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Pretrains a new model on text."""
    yield StageSpec(
        name="pretrain",
        summary="Pretrain a new model on text: it learns to continue sentences.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="pretrain",
        needs=("tokenizer",),
        gives=("run:pretrain",),
        presets=("all", "core", "rl"),
    )
