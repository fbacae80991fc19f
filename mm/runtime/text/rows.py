"""Typed rows: what a format makes of a JSON row, and how a row becomes token sequences.

A plugin may bring a row class of its own: the cache knows only the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs

from mm.runtime.text.messages import Message, ToolCall

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer

__all__ = ["ChatRow", "Encoded", "Message", "Row", "TextRow", "ToolCall", "cut_chat", "cut_text"]

# Ids, and for each whether it is a target; the first of a sequence never is one, as nothing stands before it.
TokenSequence = tuple[list[int], list[bool]]
Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], str]


@attrs.frozen(kw_only=True)
class Encoded:
    """Units of a row, each a list of (ids, learn) sequences: a document is one unit of one sequence, a pair one of two.

    `values`: numbers of each unit, all rows of a kind with the same names (empty: none). `truncated`: something that
    would have been learned was left out to fit; a row that gives no unit was dropped.
    """

    units: Sequence[Sequence[TokenSequence]]
    values: Sequence[Mapping[str, float]] = ()
    truncated: bool = False


@runtime_checkable
class Row(Protocol):
    """A typed row. `kind` is what algorithms ask for. A class with `keep = True` has its JSON row stored beside the
    tokens, for algorithms that need more than ids (rewards, tools). A class whose rows a tokenizer can be trained on
    also has `texts(render) -> list[str]`, where `render(messages, tools)` gives a conversation as text."""

    kind: ClassVar[str]

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """The row's units, no sequence longer than `max_length`."""


@attrs.frozen
class TextRow:
    """A document of plain text. A long one gives several units, cut so that every token is learned exactly once."""

    kind: ClassVar[str] = "text"

    text: str

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """bos + text + eos; the spelling of a special token inside the text stays text."""
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = [*begin, *tokenizer.encode(self.text, plain=True), tokenizer.eos_id]
        return Encoded(units=[[(part, [False] + [True] * (len(part) - 1))] for part in cut_text(ids, max_length)])

    def texts(self, render: Render) -> list[str]:
        """The document."""
        return [self.text]


@attrs.frozen
class ChatRow:
    """A conversation and the tools it may call; what the assistant says is learned, from message `begin` on."""

    kind: ClassVar[str] = "chat"

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    begin: int = 0

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """One unit. A long conversation loses its last turns; one whose first answer is too long keeps its beginning."""
        ids, learn = tokenizer.encode_chat(self.messages, self.tools, self.begin)
        end = cut_chat(learn, max_length)
        kept = learn[:end]
        return Encoded(units=[[(ids[:end], kept)]] if any(kept[1:]) else [], truncated=any(learn[end:]))

    def texts(self, render: Render) -> list[str]:
        """The conversation with the template's own words, which the model reads too."""
        return [render(self.messages, self.tools)]


def cut_text(ids: list[int], max_length: int) -> list[list[int]]:
    """Pieces of at most `max_length` tokens (at least 2). Neighbours share one token: a piece's first token is only
    what the second is predicted from, so without the overlap one target would be lost at every cut."""
    if max_length < 2:
        raise ValueError(f"max_length={max_length}: a sequence needs a token to predict from and one to predict")
    return [ids[start : start + max_length] for start in range(0, max(len(ids) - 1, 1), max_length - 1)]


def cut_chat(learn: Sequence[bool], max_length: int) -> int:
    """How many tokens of a conversation to keep: all, else up to the last answer that fits whole, else `max_length`."""
    if len(learn) <= max_length:
        return len(learn)
    ends = (i for i in range(max_length, 0, -1) if learn[i - 1] and not learn[i])
    return next(ends, max_length)
