"""The parser of labelled answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.alpaca.format import AlpacaFormat
from mm.plugins.formats.chat.format import ChatFormat
from mm.plugins.formats.preference.format import PreferenceFormat
from mm.plugins.formats.turns import LABELS, CompletedPrompt, complete_prompt, label_key, truth
from mm.plugins.formats.unpaired import recognise
from mm.plugins.formats.unpaired.row import LabelledPairRow, UnpairedRow
from mm.runtime.text.messages import kind_of


class UnpairedFormat(Format):
    """An answer and `label` (or `kto_tag`), true for a good one. The answer is the `completion` of a `prompt`, the last turn of a
    conversation, or Alpaca's `output`. A preference pair is accepted too: its chosen answer is good, and its rejected one is
    not."""

    keys = frozenset({*LABELS, *PreferenceFormat.keys, *AlpacaFormat.keys, "completion"})

    def parse(self, row: Mapping[str, Any]) -> UnpairedRow | LabelledPairRow:
        """The answer or the pair. Raises DataError with the field and the problem."""
        if not recognise(row):
            pair = PreferenceFormat().parse(row)
            return LabelledPairRow(pair.chosen, pair.rejected, pair.tools, pair.begin)
        name = label_key(row) or "label"
        label = truth(row.get(name))
        if row.get(name) is None:
            raise DataError("no label", problem="missing field")
        if label is None:
            raise DataError(f"{name} is {kind_of(row[name])}, expected true or false", problem="wrong type")
        completed = _answered(row)
        return UnpairedRow(completed.messages, completed.tools, completed.begin, label)


def _answered(row: Mapping[str, Any]) -> CompletedPrompt:
    if "completion" in row:
        return complete_prompt(row, row.get("prompt"), row.get("completion"), ("prompt", "completion"))
    format = AlpacaFormat() if "output" in row else ChatFormat()
    chat = format.parse(row)
    return CompletedPrompt(chat.messages, chat.tools, len(chat.messages) - 1)
