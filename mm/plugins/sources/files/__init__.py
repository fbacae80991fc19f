"""Files of rows and documents: JSON lines, JSON arrays, tables, Parquet, plain text, and folders of them."""

import re
from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec

# those that may be compressed, with .gz behind them; of `DOCUMENTS`, each file is one text
DOCUMENTS = (".txt", ".md")
_TEXTS = (".jsonl", ".json", ".csv", ".tsv", *DOCUMENTS)
SUFFIXES = (*_TEXTS, *(f"{suffix}.gz" for suffix in _TEXTS), ".parquet")
# two letters at least: one is a drive of Windows
_OTHER = re.compile(r"[a-z][a-z0-9-]+:")
SHOWN_SUFFIXES = f"{' '.join(_TEXTS)} (also with .gz) and .parquet"


def suffix_of(name: str) -> str:
    """The one of `SUFFIXES` that a file's name ends with, without .gz; "" if there is none. Case does not count."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in _TEXTS or (suffix == ".parquet" and name.lower().endswith(suffix)) else ""


def recognise(locator: str) -> bool:
    """True if the text looks like a path: it has a separator, ends with one of `SUFFIXES`, or exists in the current
    folder. A URL does not count, nor does `word:` before a path, which names another source, unless there is such a file."""
    if "://" in locator or not locator or (_OTHER.match(locator) and not _exists(locator)):
        return False
    return "/" in locator or "\\" in locator or suffix_of(locator) != "" or _exists(locator)


def _exists(locator: str) -> bool:
    try:
        return Path(locator).exists()
    except OSError:  # the name is too long for a file
        return False


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """The source `files`."""
    yield SourceSpec(
        name="files",
        summary=f"Files of rows or text ({SHOWN_SUFFIXES}) and folders of them, named by their path.",
        target="mm.plugins.sources.files.source:Files",
        recognise=recognise,
    )
