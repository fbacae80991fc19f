"""The format of single answers with a label: good or bad."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import is_preference


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has a prompt, a completion and a label."""
    return row.keys() >= {"prompt", "completion", "label"}


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `unpaired`."""
    yield FormatSpec(
        name="unpaired",
        summary="Unpaired preferences: prompt, completion and label (true if it is good); a pair counts as one of each.",
        target="mm.plugins.formats.unpaired.format:UnpairedFormat",
        row="unpaired",
        recognise=recognise,
        accepts=is_preference,
    )
