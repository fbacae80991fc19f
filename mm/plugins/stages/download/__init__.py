"""The stage `download`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """The data: built in, or the files that were named."""
    yield StageSpec(
        name="download",
        summary="See that the data is there; the built-in data needs no download.",
        target="mm.plugins.stages.download.stage:Download",
        presets=("all", "core", "rl"),
    )
