"""Alpaca's rows: an instruction and its output."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import label_key


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has an instruction and its output, without a label."""
    return "instruction" in row and "output" in row and not label_key(row)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `alpaca`."""
    yield FormatSpec(
        name="alpaca",
        summary="Alpaca: instruction, output, optional input, system and history.",
        target="mm.plugins.formats.alpaca.format:AlpacaFormat",
        row="chat",
        recognise=recognise,
        example={"instruction": "...", "output": "..."},
    )
