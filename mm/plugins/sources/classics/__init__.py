"""Texts that may be redistributed: classical Chinese texts and chapters of Moby-Dick."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """The source `classics`, named classics, classics:zh or classics:en."""
    yield SourceSpec(
        name="classics",
        summary="Classical Chinese texts and chapters of Moby-Dick (classics, classics:zh, classics:en).",
        target="mm.plugins.sources.classics.source:Classics",
        recognise=lambda locator: locator in ("classics", "classics:zh", "classics:en"),
        provides=("text",),
    )
