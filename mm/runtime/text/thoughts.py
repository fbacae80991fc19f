"""Where the thoughts of a reply end and its content begins, in a text that arrives in pieces."""

from __future__ import annotations

import attrs

from mm.runtime.text.call_blocks import CallBlock, CallSplitter, unfinished
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.replies import THINK, THINK_END, read_call


@attrs.frozen
class Reasoning:
    """A piece of the thoughts."""

    text: str


@attrs.frozen
class Content:
    """A piece of the reply."""

    text: str


class ThoughtStream:
    """Splits a reply into its thoughts and its content, without their tags and the line breaks that templates put around them.

    `thinking` is the argument with which the prompt was made: True has opened the think block, False has closed it, None
    leaves it to the model, whose reply then begins with `<think>` or has no thoughts. The first `</think>` ends the block,
    wherever it stands. With `calls`, so does the first well-formed tool call in a block that nothing closes: from such a call on,
    text is held back until `</think>` or the end of the stream tells which it was. `thought` is True once a block was opened.
    """

    def __init__(self, thinking: bool | None, calls: bool) -> None:
        self.thought = thinking is True
        self._calls = calls
        self._read = self._read_content if thinking is False else self._read_start
        self._carry = ""  # characters that are not certain yet, since they may belong to a tag or are a last line break
        self._splitter = CallSplitter()  # of the thoughts, for calls that end them
        self._after = list[str]()  # from the first such call on

    def push(self, text: str) -> list[Reasoning | Content]:
        """The pieces that are certain after this piece of the stream. None is empty."""
        return [one for one in self._read(text) if one.text]

    def finish(self) -> list[Reasoning | Content]:
        """The rest, at the end of the stream."""
        found = list[Reasoning | Content]()
        if self._read == self._read_start:
            found += self._begin(self._carry)
        if self._read == self._read_thoughts:
            for part in [*self._splitter.push(self._carry), *self._splitter.finish()]:
                ...
        return found
