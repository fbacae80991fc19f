"""Reads conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.plugins.formats.turns import beside_system, parse_turns
from mm.runtime.text.messages import conversation_of
from mm.runtime.text.rows import ChatRow


class ChatFormat(Format):
    """`conversations` or `messages`: turns of role and content, with `tools`, `tool_calls`, `reasoning_content`, or
    ShareGPT's turns of from and value; `system` may stand beside them."""

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation, which must end with the assistant. Raises DataError naming the turn and what is wrong."""
        messages, tools = parse_turns(row, conversation_of(row))
        return ChatRow(beside_system(row, messages), tools)
