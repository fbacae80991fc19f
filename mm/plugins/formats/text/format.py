"""The parser of plain documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.text.row import LONG, LongTextRow
from mm.runtime.text.messages import kind_of
from mm.runtime.text.rows import TextRow


class TextFormat(Format):
    """`{"text": str}`; other keys are ignored."""

    keys = frozenset({"text"})

    def parse(self, row: Mapping[str, Any]) -> TextRow:
        """The document. Raises DataError if `text` is missing, not text, or blank."""
        text = row.get("text")
        if text is None:
            raise DataError("no text", problem="missing field")
        if not isinstance(text, str):
            raise DataError(f"text is {kind_of(text)}, expected text", problem="wrong type")
        if not text.strip():
            raise DataError("text is empty", problem="empty")
        return LongTextRow(text) if len(text) > LONG else TextRow(text)
