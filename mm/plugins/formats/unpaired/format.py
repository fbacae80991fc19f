"""Reads answers with a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.preference.format import PreferenceFormat
from mm.plugins.formats.turns import answered
from mm.plugins.formats.unpaired import recognise
from mm.plugins.formats.unpaired.row import JudgedPairRow, UnpairedRow
from mm.runtime.text.messages import kind_of


class UnpairedFormat(Format):
    """`prompt` and `completion`, each a text, a message or a list of messages, and `label`: true for a good one. A pair of
    preferences is read too: its chosen answer is good, its rejected one is not."""

    def parse(self, row: Mapping[str, Any]) -> UnpairedRow | JudgedPairRow:
        """The answer or the pair. Raises DataError naming the field and what is wrong."""
        if not recognise(row):
            pair = PreferenceFormat().parse(row)
            return JudgedPairRow(pair.chosen, pair.rejected, pair.tools, pair.begin)
        label = row.get("label")
        if label is None:
            raise DataError("no label", problem="missing field")
        if not isinstance(label, bool) and label not in (0, 1):
            raise DataError(f"label is {kind_of(label)}, expected true or false", problem="wrong type")
        found = answered(row, row.get("prompt"), row.get("completion"), ("prompt", "completion"))
        return UnpairedRow(found.messages, found.tools, found.begin, bool(label))
