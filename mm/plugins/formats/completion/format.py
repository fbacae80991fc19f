"""The parser of prompts with their completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.plugins.formats.turns import complete_prompt
from mm.runtime.text.rows import ChatRow


class CompletionFormat(Format):
    """`prompt` and `completion`, each a text, a message or a list of messages. Only the completion is learned, and not the
    assistant's turns in the prompt."""

    keys = frozenset({"prompt", "completion", "tools", "system"})

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation. Raises DataError with the field and the problem."""
        completed = complete_prompt(row, row.get("prompt"), row.get("completion"), ("prompt", "completion"))
        return ChatRow(completed.messages, completed.tools, completed.begin)
