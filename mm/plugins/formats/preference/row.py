"""The typed row of a pair of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.runtime.text.messages import Message
from mm.runtime.text.rows import Encoded, Render

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer


@attrs.frozen
class PreferenceRow:
    """A chosen and a rejected conversation, equal before message `begin`. Encoded as one unit of two sequences, chosen and
    rejected."""

    kind: ClassVar[str] = "preference"

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    begin: int

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages of both sides, with the common prompt once."""
        return (*self.chosen, *self.rejected[self.begin :])

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """The targets are the assistant's tokens from message `begin` on. Each side is cut at `max_length`; the pair is
        dropped if a side has no target left."""
        sides = [tokenizer.encode_chat(side, self.tools, self.begin) for side in (self.chosen, self.rejected)]
        unit = [(ids[:max_length], learn[:max_length]) for ids, learn in sides]
        both_learn = all(any(learn[1:]) for _, learn in unit)
        return Encoded(units=[unit] if both_learn else [], truncated=any(any(learn[max_length:]) for _, learn in sides))

    def texts(self, render: Render) -> list[str]:
        """Both conversations."""
        return [render(side, self.tools) for side in (self.chosen, self.rejected)]
