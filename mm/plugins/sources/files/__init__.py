"""Files of rows: JSON lines, JSON arrays, Parquet, and folders of them."""

from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


def recognise(locator: str) -> bool:
    """Whether the text looks like a path: it has a separator, ends like a file of rows, or stands in this folder."""
    if "://" in locator:
        return False
    return "/" in locator or "\\" in locator or locator.endswith(SUFFIXES) or Path(locator).exists()


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """The part."""
    yield SourceSpec(
        name="files",
        summary="Files of rows (.jsonl, .json, either with .gz, .parquet) and folders of them, named by their path.",
        target="mm.plugins.sources.files.source:Files",
        recognise=recognise,
    )
