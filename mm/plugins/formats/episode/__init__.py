"""Episodes for agents: a question, tools, and what the answer must hold."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import first_turn


def recognise(row: Mapping[str, Any]) -> bool:
    """Whether the row is a conversation with its expected values."""
    return "gt" in row and first_turn(row) is not None


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The part."""
    yield FormatSpec(
        name="episode",
        summary="Agent episodes: a conversation with tools, and gt, the values that the final answer must hold.",
        target="mm.plugins.formats.episode.format:EpisodeFormat",
        row="episode",
        recognise=recognise,
    )
