"""Files of rows: JSON lines, JSON arrays, Parquet, and folders of them."""

from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


def recognise(locator: str) -> bool:
    """True if the text looks like a path: it has a separator, ends with one of `SUFFIXES`, or exists in the current
    folder. A URL does not count."""
    if "://" in locator:
        return False
    return "/" in locator or "\\" in locator or locator.endswith(SUFFIXES) or Path(locator).exists()


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """The source `files`."""
    yield SourceSpec(
        name="files",
        summary="Files of rows (.jsonl, .json, either with .gz, .parquet) and folders of them, named by their path.",
        target="mm.plugins.sources.files.source:Files",
        recognise=recognise,
    )
