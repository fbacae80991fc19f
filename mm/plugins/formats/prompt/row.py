"""The typed row of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.runtime.text.messages import Message
from mm.runtime.text.rows import Encoded, Render

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer


@attrs.frozen
class PromptRow:
    """A conversation without the final reply. `fields` is the JSON row, whose other fields rewards may read.

    Encoded as one unit of one sequence: the prompt up to the header of the assistant's turn, without targets.
    """

    kind: ClassVar[str] = "prompt"
    keep: ClassVar[bool] = True

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    fields: Mapping[str, Any]

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """The prompt; one that is too long is dropped, since a prompt that is cut is another question."""
        ids = tokenizer.encode_prompt(self.messages, self.tools, complete=True)
        if len(ids) > max_length:
            return Encoded(units=[], truncated=True)
        return Encoded(units=[[(ids, [False] * len(ids))]])

    def texts(self, render: Render) -> list[str]:
        """The conversation."""
        return [render(self.messages, self.tools)]
