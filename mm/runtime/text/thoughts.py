"""Where the thoughts of a reply end and its content begins, in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    """Splits a reply into its thoughts and its content, without the tags and the line breaks that templates put around them.

    `thinking` is the argument with which the prompt was made: True has opened the think block, False has closed it, None
    leaves it to the model, whose reply then begins with `<think>` or has no thoughts. The first `</think>` ends the block,
    wherever it stands. With `calls`, so does the first well-formed tool call in a block that nothing closes: from such a call on,
    the text is held back until `</think>` or the end of the stream tells which of the two it was.

    `thought` is True once a block was opened. The pieces, joined by type, do not depend on how the stream is cut.
    """

    def __init__(self, thinking: bool | None, calls: bool) -> None:
        self.thought = thinking is True
        self._calls = calls
        self._read = self._read_content if thinking is False else self._read_start
        self._carry = ""  # the last characters, which may be the beginning of a tag or of the line breaks after one
        self._line_break = ""  # the last one of the thoughts so far
        self._splitter = CallSplitter()  # of the thoughts
        self._after: list[str] = []  # the thoughts from the first well-formed call on

    def push(self, text: str) -> list[Reasoning | Content]:
        """The pieces that are certain after this piece of the stream. None is empty."""
        return [one for one in self._read(text) if one.text]

    def finish(self) -> list[Reasoning | Content]:
        """The rest, at the end of the stream. Nothing is pushed after that."""
        found = self._begin(self._carry) if self._read == self._read_start else []
        if self._read == self._read_thoughts:
            found += self._think([*self._split(self._carry), *self._splitter.finish()])
            found.append(Content("".join(self._after)))
        elif self._read == self._read_gap:
            found.append(Content(self._carry))
        return [one for one in found if one.text]

    def _read_start(self, text: str) -> list[Reasoning | Content]:
        self._carry += text
        return [] if f"{THINK}\n".startswith(self._carry) else self._begin(self._carry)

    def _begin(self, head: str) -> list[Reasoning | Content]:
        self.thought = self.thought or head.startswith(THINK)
        self._read, self._carry = self._read_thoughts if self.thought else self._read_content, ""
        return self._read(head.removeprefix(THINK).removeprefix("\n") if head.startswith(THINK) else head)

    def _read_thoughts(self, text: str) -> list[Reasoning | Content]:
        before, closed, rest = (self._carry + text).partition(THINK_END)
        if closed:
            self._read, self._carry = self._read_gap, ""
            thoughts = "".join([self._line_break, *self._after, self._splitter.held(), before])
            return [Reasoning(thoughts.removesuffix("\n")), *self._read_gap(rest)]
        end = len(before) - unfinished(before, THINK_END)
        self._carry = before[end:]
        return self._think(self._split(before[:end]))

    def _split(self, text: str) -> Sequence[str | CallBlock]:
        return self._splitter.push(text) if self._calls else [text]

    def _think(self, parts: Iterable[str | CallBlock]) -> list[Reasoning | Content]:
        found: list[Reasoning | Content] = []
        for part in parts:
            if self._after or (isinstance(part, CallBlock) and isinstance(read_call(part), ToolCall)):
                self._after.append(str(part))
                continue
            text = self._line_break + str(part)
            self._line_break = text[len(text.removesuffix("\n")) :]
            found.append(Reasoning(text.removesuffix("\n")))
        return found

    def _read_gap(self, text: str) -> list[Reasoning | Content]:
        self._carry += text
        if self._carry in ("", "\n"):
            return []
        self._read = self._read_content
        return [Content(self._carry.removeprefix("\n\n"))]

    def _read_content(self, text: str) -> list[Reasoning | Content]:
        return [Content(text)]


def answer(text: str, thinking: bool | None = None, *, calls: bool = False) -> Message:
    """A completion as the assistant's turn in the history of a conversation, with its reasoning split off as by `ThoughtStream`.

    Tool calls stay in the text; with `calls`, a call in a think block that nothing closes ends that block.
    """
    stream = ThoughtStream(thinking, calls)
    pieces = [*stream.push(text), *stream.finish()]
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    return Message("assistant", content, reasoning_content=reasoning if stream.thought or thinking is False else None)
