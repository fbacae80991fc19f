"""The parser of queries with their calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.turns import parse_turns
from mm.runtime.text.messages import embedded_json
from mm.runtime.text.rows import ChatRow


class XlamFormat(Format):
    """`query`, `tools` and `answers`, a list of calls {name, arguments}; both lists may be JSON text."""

    keys = frozenset({"query", "tools", "answers"})

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """A conversation of one question and one turn of calls. Raises DataError with the field and the problem."""
        calls = embedded_json(row.get("answers"), "answers", list)
        if not calls:
            raise DataError("answers is empty", problem="empty")
        turns = [{"role": "user", "content": row.get("query")}, {"role": "assistant", "content": "", "tool_calls": calls}]
        return ChatRow(*parse_turns(row, turns))
