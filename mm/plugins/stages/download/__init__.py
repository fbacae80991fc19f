"""The stage `download`."""

from collections.abc import Iterable

from attrs import frozen

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import StageSpec


@frozen(kw_only=True)
class DownloadOptions:
    """The options of the stage, beside those that name data and models."""

    hub_model: tuple[str, ...] = option((), help="Model of a hub to download too; may be given several times.")


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Checks the data, and downloads what is on a hub."""
    yield StageSpec(
        name="download",
        summary="Download the hub data and models of the line, and check that other data exists.",
        target="mm.plugins.stages.download.stage:Download",
        config=DownloadOptions,
        presets=("all", "core", "rl"),
    )
