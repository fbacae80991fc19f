"""A prompt and its completion."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import label_key


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has a prompt and a completion, but no label."""
    return "prompt" in row and "completion" in row and "label" not in row and not label_key(row)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `completion`."""
    yield FormatSpec(
        name="completion",
        summary="A prompt and its completion, each a text or messages; only the completion is learned.",
        target="mm.plugins.formats.completion.format:CompletionFormat",
        row="chat",
        recognise=recognise,
        example={"prompt": "...", "completion": "..."},
    )
