"""The stage `tokenizer`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Trains a tokenizer on the data."""
    yield StageSpec(
        name="tokenizer",
        summary="Train the tokenizer, which cuts text into the tokens that a model reads.",
        target="mm.plugins.stages.tokenizer.stage:TrainTokenizer",
        gives=("tokenizer",),
        presets=("all", "core", "rl"),
    )
