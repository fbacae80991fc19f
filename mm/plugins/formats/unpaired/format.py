"""The parser of labelled answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.preference.format import PreferenceFormat
from mm.plugins.formats.turns import complete_prompt
from mm.plugins.formats.unpaired import recognise
from mm.plugins.formats.unpaired.row import LabelledPairRow, UnpairedRow
from mm.runtime.text.messages import kind_of


class UnpairedFormat(Format):
    """`prompt` and `completion`, each a text, a message or a list of messages, and `label`, true for a good completion. A
    preference pair is accepted too: its chosen answer is good, and its rejected one is not."""

    def parse(self, row: Mapping[str, Any]) -> UnpairedRow | LabelledPairRow:
        """The answer or the pair. Raises DataError with the field and the problem."""
        if not recognise(row):
            pair = PreferenceFormat().parse(row)
            return LabelledPairRow(pair.chosen, pair.rejected, pair.tools, pair.begin)
        label = row.get("label")
        if label is None:
            raise DataError("no label", problem="missing field")
        if not isinstance(label, bool) and label not in (0, 1):
            raise DataError(f"label is {kind_of(label)}, expected true or false", problem="wrong type")
        completed = complete_prompt(row, row.get("prompt"), row.get("completion"), ("prompt", "completion"))
        return UnpairedRow(completed.messages, completed.tools, completed.begin, bool(label))
