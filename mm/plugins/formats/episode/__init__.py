"""Episodes for agents: a question, tools, and the values that the final answer must contain."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import first_turn


def recognise(row: Mapping[str, Any]) -> bool:
    """True if the row has a conversation and its expected values."""
    return "gt" in row and first_turn(row) is not None


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `episode`."""
    yield FormatSpec(
        name="episode",
        summary="Agent episodes: a conversation with tools, and gt, the values that the final answer must contain.",
        target="mm.plugins.formats.episode.format:EpisodeFormat",
        row="episode",
        recognise=recognise,
        example={"messages": [{"role": "user", "content": "..."}], "tools": [], "gt": []},
    )
