"""The parsing of a reply while it is drawn: thoughts, text and tool calls as deltas."""

from __future__ import annotations

import json
import re

import attrs

from mm.runtime.text.call_blocks import CallBlock, CallSplitter
from mm.runtime.text.messages import ToolCall
from mm.runtime.text.replies import read_call
from mm.runtime.text.thoughts import Content, Reasoning, ThoughtStream


@attrs.frozen
class CallStart:
    """A tool call begins; the calls of a reply are counted from 0."""

    index: int
    name: str


@attrs.frozen
class CallArguments:
    """The arguments of a call, or a piece of them, as JSON text of an object."""

    index: int
    text: str


@attrs.frozen
class CallEnd:
    """The call is complete."""

    index: int


Delta = Reasoning | Content | CallStart | CallArguments | CallEnd


class ReplyStream:
    """Parses a reply that arrives in pieces. `thinking`: see `ThoughtStream`. Without `tools`, the tags of calls are content.

    Joined, the deltas do not depend on how the stream is cut, and are those of the functions for whole texts: thoughts and
    content as by `answer`, calls as by `read_calls`. Time is linear in the length of the text.

    - A call is certain at its closing tag. Until then it may turn out to be malformed, and a malformed call is content, with its
      tags and as it was written; that cannot be returned any more once its name was. So the deltas of a call come together,
      and every call has a name and an object of arguments. These are the text that the model wrote, without the quotes if it
      wrote them as a JSON string, and "{}" if it wrote none.
    - Whitespace of the content is held back while only calls or the end may follow. Behind the last text of a reply with calls
      it is left out.
    """

    def __init__(self, thinking: bool | None, tools: bool) -> None:
        self._thoughts = ThoughtStream(thinking, calls=tools)
        self._splitter = CallSplitter()
        self._tools = tools
        self._spaces: list[str] = []  # after the last text
        self._calls = 0

    @property
    def thought(self) -> bool:
        """True once a think block was opened, even if it is empty."""
        return self._thoughts.thought

    def push(self, text: str) -> list[Delta]:
        """The deltas that are certain after this piece of the reply. No text is empty."""
        return [delta for piece in self._thoughts.push(text) for delta in self._piece(piece)]

    def finish(self) -> list[Delta]:
        """The rest, at the end of the reply. Nothing is pushed after that."""
        found = [delta for piece in self._thoughts.finish() for delta in self._piece(piece)]
        found += [delta for part in self._splitter.finish() for delta in self._part(part)]
        spaces = "" if self._calls else "".join(self._spaces)
        return [*found, Content(spaces)] if spaces else found

    def _piece(self, piece: Reasoning | Content) -> list[Delta]:
        if isinstance(piece, Reasoning) or not self._tools:
            return [piece]
        return [delta for part in self._splitter.push(piece.text) for delta in self._part(part)]

    def _part(self, part: str | CallBlock) -> list[Delta]:
        if isinstance(part, CallBlock) and isinstance(call := read_call(part), ToolCall):
            index, self._calls = self._calls, self._calls + 1
            return [CallStart(index, call.name), CallArguments(index, _arguments(part.body.strip())), CallEnd(index)]
        text = str(part)
        if text.isspace():
            self._spaces.append(text)
            return []
        spaces, self._spaces = self._spaces, [text[len(text.rstrip()) :]]
        return [Content("".join([*spaces, text.rstrip()]))]


def _arguments(call: str) -> str:
    """The arguments of a well-formed call as they were written, as JSON text of an object."""
    members = _members(call)
    if members.get("function", "").startswith("{"):
        members = _members(members["function"])
    written = members.get("arguments", "null")
    text = json.loads(written) if written.startswith('"') else written
    return "{}" if text in ("", "null") else text


_SPACE = re.compile(r"[ \t\n\r]*")


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object, with the text of each value."""
    found, read = dict[str, str](), json.JSONDecoder().raw_decode
    at = _skip(text, 1)
    while text[at] != "}":
        key, end = read(text, at)
        start = _skip(text, _skip(text, end) + 1)  # behind the colon
        _, end = read(text, start)
        found[key] = text[start:end]
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()
