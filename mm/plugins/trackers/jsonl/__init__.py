"""The built-in tracker: metrics.jsonl, with one line per log interval."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import TrackerSpec


@hookimpl
def mm_trackers() -> Iterable[TrackerSpec]:
    """metrics.jsonl in the run's folder; every run has it."""
    yield TrackerSpec(
        name="jsonl", summary="metrics.jsonl in the run's folder.", target="mm.plugins.trackers.jsonl.tracker:Jsonl", always=True
    )
