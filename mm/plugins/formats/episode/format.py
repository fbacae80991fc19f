"""The parser of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError, Problem
from mm.plugins.formats.chat.format import ChatFormat
from mm.plugins.formats.episode.row import EpisodeRow
from mm.plugins.formats.turns import parse_turns, with_system_message, without_reply
from mm.runtime.text.conversation import conversation_of
from mm.runtime.text.messages import kind_of


class EpisodeFormat(Format):
    """`conversations` or `messages` with tools, and `gt`, a list of values. A reply at the end is removed."""

    keys = frozenset({"gt", *ChatFormat.keys})

    def parse(self, row: Mapping[str, Any]) -> EpisodeRow:
        """The episode. Raises DataError with the field or the turn and the problem."""
        expected = row.get("gt")
        if not isinstance(expected, list):
            problem: Problem = "missing field" if expected is None else "wrong type"
            raise DataError(f"gt is {kind_of(expected)}, expected a list", problem=problem)
        messages, tools = parse_turns(row, conversation_of(row), complete=False)
        if expected and not tools:
            raise DataError(f"gt expects {len(expected)} calls, but the row has no tools", problem="missing field")
        return EpisodeRow(without_reply(with_system_message(row, messages)), tools, row, tuple(expected))
