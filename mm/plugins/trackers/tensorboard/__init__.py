"""A tracker that writes curves for TensorBoard."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import TrackerSpec


@hookimpl
def mm_trackers() -> Iterable[TrackerSpec]:
    """`--tracker tensorboard`: event files in the run's folder."""
    yield TrackerSpec(
        name="tensorboard",
        summary="Event files for TensorBoard, in the run's folder.",
        target="mm.plugins.trackers.tensorboard.tracker:Tensorboard",
    )
