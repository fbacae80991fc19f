"""Reads conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.core.contracts import Format
from mm.core.data.messages import parse_conversation
from mm.core.data.rows import ChatRow


class ChatFormat(Format):
    """`conversations` or `messages`: turns of role and content, with `tools`, `tool_calls`, `reasoning_content`."""

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation, which must end with the assistant. Raises DataError naming the turn and what is wrong."""
        messages, tools = parse_conversation(row)
        return ChatRow(messages, tools)
