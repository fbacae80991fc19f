"""Reads conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.core.contracts import Format
from mm.core.data.messages import conversation_of
from mm.core.data.rows import ChatRow
from mm.plugins.formats.turns import parse_turns, with_system


class ChatFormat(Format):
    """`conversations` or `messages`: turns of role and content, with `tools`, `tool_calls`, `reasoning_content`, or
    ShareGPT's turns of from and value; `system` may stand beside them."""

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation, which must end with the assistant. Raises DataError naming the turn and what is wrong."""
        turns = conversation_of(row)
        messages, tools = parse_turns(row, with_system(row, turns) if isinstance(turns, list) else turns)
        return ChatRow(messages, tools)
