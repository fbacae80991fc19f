"""The stage `download`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Checks the data: the files given with `--data`, or the built-in data."""
    yield StageSpec(
        name="download",
        summary="Check that the data exists; the built-in data needs no download.",
        target="mm.plugins.stages.download.stage:Download",
        presets=("all", "core", "rl"),
    )
