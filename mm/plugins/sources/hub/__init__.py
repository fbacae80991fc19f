"""Data sets of the hubs: `hub:owner/name` at Hugging Face, `ms:owner/name` at ModelScope, and their short names."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec
from mm.runtime.hubs.locator import is_hub


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """The source `hub`."""
    yield SourceSpec(
        name="hub",
        summary="Data sets of Hugging Face (hub:OWNER/NAME) and ModelScope (ms:OWNER/NAME), and the names of mm data list.",
        target="mm.plugins.sources.hub.source:HubFiles",
        recognise=is_hub,
    )
