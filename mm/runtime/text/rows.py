"""Typed rows: a format parses a JSON row to one, and it encodes itself to token sequences.

A plugin may define a row class of its own: the token cache uses only the protocol `Row`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs

from mm.runtime.text.messages import Message, ToolCall

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer

__all__ = ["ChatRow", "Encoded", "Message", "Row", "TextRow", "ToolCall", "cut_chat", "cut_text"]

# Ids, and for each whether it is a target. The first token of a sequence never is one, since nothing predicts it.
TokenSequence = tuple[list[int], list[bool]]
Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], str]


@attrs.frozen(kw_only=True)
class Encoded:
    """The units of a row. Each unit is a list of (ids, learn) sequences: a document is one unit with one sequence, a pair of
    answers one unit with two. A row without units is dropped.

    `values`: numbers for each unit, empty if there are none; all rows of a kind must have the same names. `truncated`:
    True if tokens that would have been targets were cut off to fit the maximum length.
    """

    units: Sequence[Sequence[TokenSequence]]
    values: Sequence[Mapping[str, float]] = ()
    truncated: bool = False


@runtime_checkable
class Row(Protocol):
    """A typed row. Algorithms name the `kind` of row that they need.

    If a class has `keep = True`, its JSON rows are stored with the tokens, for algorithms that need more than ids (rewards,
    tools). If a tokenizer can be trained on its rows, a class also has `texts(render) -> list[str]`, where
    `render(messages, tools)` returns a conversation as text.
    """

    kind: ClassVar[str]

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """The row's units, no sequence longer than `max_length`."""


@attrs.frozen
class TextRow:
    """A document of plain text. A long one becomes several units, cut so that every token is a target exactly once."""

    kind: ClassVar[str] = "text"

    text: str

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """bos + text + eos. The spelling of a special token inside the text is encoded as plain text."""
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = [*begin, *tokenizer.encode(self.text, plain=True), tokenizer.eos_id]
        return Encoded(units=[[(part, [False] + [True] * (len(part) - 1))] for part in cut_text(ids, max_length)])

    def texts(self, render: Render) -> list[str]:
        """The document."""
        return [self.text]


@attrs.frozen
class ChatRow:
    """A conversation and the tools that it offers. The targets are the tokens of the assistant, from message `begin` on."""

    kind: ClassVar[str] = "chat"

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    begin: int = 0

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """One unit, or none if no target is left. A conversation that is too long is cut after the last reply that fits
        whole, or, if none does, at `max_length`."""
        ids, learn = tokenizer.encode_chat(self.messages, self.tools, self.begin)
        end = cut_chat(learn, max_length)
        kept = learn[:end]
        return Encoded(units=[[(ids[:end], kept)]] if any(kept[1:]) else [], truncated=any(learn[end:]))

    def texts(self, render: Render) -> list[str]:
        """The conversation as the template renders it, including the template's own text, which the model sees too."""
        return [render(self.messages, self.tools)]


def cut_text(ids: list[int], max_length: int) -> list[list[int]]:
    """Cuts ids into pieces of at most `max_length` tokens. Raises ValueError if `max_length` is below 2.

    Neighbouring pieces share one token: the first token of a piece is not a target, so without the overlap every cut
    would lose one target.
    """
    if max_length < 2:
        raise ValueError(f"max_length={max_length}: a sequence needs a token to predict from and one to predict")
    return [ids[start : start + max_length] for start in range(0, max(len(ids) - 1, 1), max_length - 1)]


def cut_chat(learn: Sequence[bool], max_length: int) -> int:
    """The number of tokens of a conversation to keep: all if they fit, else up to the end of the last reply that fits
    whole, else `max_length`."""
    if len(learn) <= max_length:
        return len(learn)
    ends = (i for i in range(max_length, 0, -1) if learn[i - 1] and not learn[i])
    return next(ends, max_length)
