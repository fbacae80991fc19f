"""Prompts for reinforcement learning."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import first_turn, is_open, is_preference


def accepts(row: Mapping[str, Any]) -> bool:
    """True if the row has a prompt or a conversation; a reply at its end is removed when it is parsed."""
    return "prompt" in row or first_turn(row) is not None


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has a prompt without an answer, and no fields of another format."""
    if ("gt" in row and "prompt" not in row) or is_preference(row) or "completion" in row:
        return False
    return "prompt" in row or is_open(row)


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `prompt`."""
    yield FormatSpec(
        name="prompt",
        summary="Prompts to be answered: prompt or an unanswered conversation, and the fields that a reward reads.",
        target="mm.plugins.formats.prompt.format:PromptFormat",
        row="prompt",
        recognise=recognise,
        accepts=accepts,
        example={"prompt": "..."},
    )
