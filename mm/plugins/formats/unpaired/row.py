"""The rows of answers with a verdict."""

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
    """A conversation whose answer, from message `begin` on, is good or not. A unit of one sequence with the value
    `label`, 1.0 or 0.0."""

    kind: ClassVar[str] = "unpaired"

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    begin: int
    label: bool

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """What the assistant says in the answer is learned; a long answer loses its end."""
        ids, learn = tokenizer.encode_chat(self.messages, self.tools, self.begin)
        kept, cut = learn[:max_length], any(learn[max_length:])
        if not any(kept[1:]):
            return Encoded(units=[], truncated=cut)
        return Encoded(units=[[(ids[:max_length], kept)]], values=[{"label": float(self.label)}], truncated=cut)

    def texts(self, render: Render) -> list[str]:
        """The conversation."""
        return [render(self.messages, self.tools)]


@attrs.frozen
class JudgedPairRow(PreferenceRow):
    """A pair of preferences as two answers with a verdict each: a unit for the chosen one and a unit for the rejected one."""

    kind: ClassVar[str] = "unpaired"

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """Both sides, each encoded by itself."""
        sides = ((self.chosen, True), (self.rejected, False))
        found = [UnpairedRow(said, self.tools, self.begin, label).encode(tokenizer, max_length) for said, label in sides]
        return Encoded(
            units=[unit for one in found for unit in one.units],
            values=[values for one in found for values in one.values],
            truncated=any(one.truncated for one in found),
        )
