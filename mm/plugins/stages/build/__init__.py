"""The stage `build`."""

from collections.abc import Iterable

from attrs import frozen

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import StageSpec


@frozen(kw_only=True)
class BuildOptions:
    """The options of the stage. `mm run --docker` sets `docker` and `image`."""

    docker: bool = option(False, help="Build the image in which 'mm run --docker' runs the stages.")
    image: str = option("", help="Name of the image; by default minimind-ascend-BACKEND:VERSION.")
    backend: str = option("auto", help="Chip.")


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Builds the backend's image, if the stages run in containers and there is an engine."""
    yield StageSpec(
        name="build",
        summary="Build the image that the stages run in; skipped without --docker.",
        target="mm.plugins.stages.build.stage:Build",
        config=BuildOptions,
        presets=("all", "core"),
    )
