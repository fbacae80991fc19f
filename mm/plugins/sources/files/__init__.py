"""Files of JSON lines, plain or compressed with gzip."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec

SUFFIXES = (".jsonl", ".jsonl.gz")


def recognise(locator: str) -> bool:
    """Whether the text looks like a path: it has a separator or ends like a file of rows."""
    return "://" not in locator and ("/" in locator or "\\" in locator or locator.endswith(SUFFIXES))


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """The part."""
    yield SourceSpec(
        name="files",
        summary="Files of JSON lines (.jsonl, .jsonl.gz), named by their path.",
        target="mm.plugins.sources.files.source:Files",
        recognise=recognise,
    )
