"""The format of single answers with a label: good or bad."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import first_turn, is_open, is_preference, label_key


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has an answer and a label: with a prompt and a completion, as a conversation that ends with a reply, or
    in Alpaca's shape."""
    if row.keys() >= {"prompt", "completion"}:
        return "label" in row or label_key(row) != ""
    answered = row.keys() >= {"instruction", "output"} or (first_turn(row) is not None and not is_open(row))
    return answered and label_key(row) != "" and not is_preference(row)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `unpaired`."""
    yield FormatSpec(
        name="unpaired",
        summary="Unpaired preferences: an answer and its label (true if it is good); a pair counts as one of each.",
        target="mm.plugins.formats.unpaired.format:UnpairedFormat",
        row="unpaired",
        recognise=recognise,
        accepts=is_preference,
        example={"prompt": "...", "completion": "...", "label": True},
    )
