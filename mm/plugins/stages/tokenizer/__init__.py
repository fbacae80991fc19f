"""The stage `tokenizer`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Trains a tokenizer on the data."""
    yield StageSpec(
        name="tokenizer",
        summary="Train a tokenizer on the data.",
        target="mm.plugins.stages.tokenizer.stage:TrainTokenizer",
        gives=("tokenizer",),
        presets=("all", "core", "rl"),
    )
