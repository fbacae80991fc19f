"""The row of two answers."""

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
    """Two conversations that part at message `begin`, of which the first is preferred. A unit of two sequences, chosen
    and rejected."""

    kind: ClassVar[str] = "preference"

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    begin: int

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything that is said, the prompt once."""
        return (*self.chosen, *self.rejected[self.begin :])

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """What the assistant says in the answers is learned; a long answer loses its end, and a pair of which one side
        has none left is dropped."""
        sides = [tokenizer.encode_chat(side, self.tools, self.begin) for side in (self.chosen, self.rejected)]
        unit = [(ids[:max_length], learn[:max_length]) for ids, learn in sides]
        whole = all(any(learn[1:]) for _, learn in unit)
        return Encoded(units=[unit] if whole else [], truncated=any(any(learn[max_length:]) for _, learn in sides))

    def texts(self, render: Render) -> list[str]:
        """Both conversations."""
        return [render(side, self.tools) for side in (self.chosen, self.rejected)]
