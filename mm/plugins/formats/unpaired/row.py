"""The typed rows of labelled answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.plugins.formats.preference.row import PreferenceRow
from mm.runtime.text.messages import Message
from mm.runtime.text.rows import Encoded, Render

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer


@attrs.frozen
class UnpairedRow:
    """A conversation whose answer, from message `begin` on, is good or not. Encoded as one unit of one sequence, with the
    value `label`: 1.0 for a good answer, else 0.0."""

    kind: ClassVar[str] = "unpaired"

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    begin: int
    label: bool

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """The targets are the assistant's tokens from message `begin` on. The sequence is cut at `max_length`; it is dropped
        if no target is left."""
        ids, learn = tokenizer.encode_chat(self.messages, self.tools, self.begin)
        kept, cut = learn[:max_length], any(learn[max_length:])
        if not any(kept[1:]):
            return Encoded(units=[], truncated=cut)
        return Encoded(units=[[(ids[:max_length], kept)]], values=[{"label": float(self.label)}], truncated=cut)

    def texts(self, render: Render) -> list[str]:
        """The conversation."""
        return [render(self.messages, self.tools)]


@attrs.frozen
class LabelledPairRow(PreferenceRow):
    """A preference pair as two labelled answers: one unit for the chosen answer, and one for the rejected answer."""

    kind: ClassVar[str] = "unpaired"

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """Both sides, each encoded as an `UnpairedRow`."""
        rows = [
            UnpairedRow(self.chosen, self.tools, self.begin, label=True),
            UnpairedRow(self.rejected, self.tools, self.begin, label=False),
        ]
        parts = [row.encode(tokenizer, max_length) for row in rows]
        return Encoded(
            units=[unit for part in parts for unit in part.units],
            values=[values for part in parts for values in part.values],
            truncated=any(part.truncated for part in parts),
        )
