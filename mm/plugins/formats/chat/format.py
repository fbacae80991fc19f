"""The parser of conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.plugins.formats.turns import parse_turns, with_system_message
from mm.runtime.text.conversation import conversation_of
from mm.runtime.text.rows import ChatRow


class ChatFormat(Format):
    """`conversations` or `messages`: turns with role and content, and optionally `tools`, `tool_calls` and
    `reasoning_content`; or ShareGPT's turns with from and value. The row may have a `system` text of its own."""

    keys = frozenset({"conversations", "messages", "tools", "system"})

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation, which must end with the assistant. Raises DataError with the turn and the problem."""
        messages, tools = parse_turns(row, conversation_of(row))
        return ChatRow(with_system_message(row, messages), tools)
