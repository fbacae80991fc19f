"""Reads prompts with their completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.plugins.formats.turns import answered
from mm.runtime.text.rows import ChatRow


class CompletionFormat(Format):
    """`prompt` and `completion`, each a text, a message or a list of messages; what the assistant says in the prompt
    is not learned."""

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation. Raises DataError naming the field and what is wrong."""
        found = answered(row, row.get("prompt"), row.get("completion"), ("prompt", "completion"))
        return ChatRow(found.messages, found.tools, found.begin)
