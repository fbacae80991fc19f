"""Reads answers with a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.core.contracts import Format
from mm.core.data.messages import kind_of
from mm.core.errors import DataError
from mm.plugins.formats.turns import answered
from mm.plugins.formats.unpaired.row import UnpairedRow


class UnpairedFormat(Format):
    """`prompt` and `completion`, each a text, a message or a list of messages, and `label`: true for a good one."""

    def parse(self, row: Mapping[str, Any]) -> UnpairedRow:
        """The answer. Raises DataError naming the field and what is wrong."""
        label = row.get("label")
        if label is None:
            raise DataError("no label", problem="missing field")
        if not isinstance(label, bool) and label not in (0, 1):
            raise DataError(f"label is {kind_of(label)}, expected true or false", problem="wrong type")
        found = answered(row, row.get("prompt"), row.get("completion"), ("prompt", "completion"))
        return UnpairedRow(found.messages, found.tools, found.begin, bool(label))
