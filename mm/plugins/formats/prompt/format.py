"""Reads prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.prompt.row import PromptRow
from mm.plugins.formats.turns import beside_system, parse_turns, said_by, without_answer
from mm.runtime.text.messages import conversation_of


class PromptFormat(Format):
    """`prompt` (a text or messages), `conversations` or `messages`; an answer at the end is left out. Everything else
    in the row is for rewards."""

    def parse(self, row: Mapping[str, Any]) -> PromptRow:
        """The prompt. Raises DataError naming the turn and what is wrong."""
        turns = conversation_of(row)
        if turns is not None and row.get("prompt") is not None:
            raise DataError("both prompt and a conversation: leave one of them out")
        name = "prompt" if turns is None else "conversation"
        asked = said_by(row.get("prompt") if turns is None else turns, "user", name)
        messages, tools = parse_turns(row, asked, complete=False)
        return PromptRow(without_answer(beside_system(row, messages)), tools, row)
