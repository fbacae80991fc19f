"""The row of an answer with a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.core.data.messages import Message
from mm.core.data.rows import Encoded, Render

if TYPE_CHECKING:
    from mm.core.data.tokenizer import Tokenizer


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
