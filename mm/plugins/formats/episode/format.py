"""Reads episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError, Problem
from mm.plugins.formats.episode.row import EpisodeRow
from mm.plugins.formats.turns import beside_system, parse_turns, without_answer
from mm.runtime.text.messages import conversation_of, kind_of


class EpisodeFormat(Format):
    """`conversations` or `messages` with tools, and `gt`, a list of values; an answer at the end is left out."""

    def parse(self, row: Mapping[str, Any]) -> EpisodeRow:
        """The episode. Raises DataError naming the turn and what is wrong."""
        expected = row.get("gt")
        if not isinstance(expected, list):
            problem: Problem = "missing field" if expected is None else "wrong type"
            raise DataError(f"gt is {kind_of(expected)}, expected a list", problem=problem)
        messages, tools = parse_turns(row, conversation_of(row), complete=False)
        if expected and not tools:
            raise DataError(f"gt expects {len(expected)} calls, and the row has no tools", problem="missing field")
        return EpisodeRow(without_answer(beside_system(row, messages)), tools, row, tuple(expected))
