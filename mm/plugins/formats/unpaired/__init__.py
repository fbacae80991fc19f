"""Answers with a verdict."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import is_preference


def recognise(row: Mapping[str, Any]) -> bool:
    """Whether the row has a prompt, a completion and the verdict."""
    return row.keys() >= {"prompt", "completion", "label"}


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The part."""
    yield FormatSpec(
        name="unpaired",
        summary="Unpaired preferences: prompt, completion and whether it is good (label); a pair gives one of each.",
        target="mm.plugins.formats.unpaired.format:UnpairedFormat",
        row="unpaired",
        recognise=recognise,
        accepts=is_preference,
    )
