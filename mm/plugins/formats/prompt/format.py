"""The parser of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.chat.format import ChatFormat
from mm.plugins.formats.prompt.row import PromptRow
from mm.plugins.formats.turns import as_turns, parse_turns, with_system_message, without_reply
from mm.runtime.text.conversation import conversation_of


class PromptFormat(Format):
    """`prompt` (a text or messages), `conversations` or `messages`. A reply at the end is removed. The other fields of the
    row are for rewards."""

    keys = frozenset({"prompt", *ChatFormat.keys})

    def parse(self, row: Mapping[str, Any]) -> PromptRow:
        """The prompt. Raises DataError with the field or the turn and the problem."""
        turns = conversation_of(row)
        if turns is not None and row.get("prompt") is not None:
            raise DataError("both prompt and a conversation: remove one of them")
        name = "prompt" if turns is None else "conversation"
        prompt = as_turns(row.get("prompt") if turns is None else turns, "user", name)
        messages, tools = parse_turns(row, prompt, complete=False)
        return PromptRow(without_reply(with_system_message(row, messages)), tools, row)
