"""The assistant's turn in a completion: thoughts, content and tool calls."""

from __future__ import annotations

import attrs

from mm.runtime.text.reply_stream import CallArguments, CallStart, ReplyStream
from mm.runtime.text.thoughts import Content, Reasoning


@attrs.define
class ToolCallText:
    """A tool call with its arguments as JSON text."""

    name: str
    arguments: str = ""


@attrs.define
class Reply:
    """A parsed completion."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCallText] = attrs.field(factory=list)


def read_reply(text: str, thinking: bool | None, tools: bool) -> Reply:
    """The parts of a completion's text. `thinking` is what its prompt was made with; without `tools`, calls stay text."""
    reply, stream = Reply(), ReplyStream(thinking, tools)
    for delta in [*stream.push(text), *stream.finish()]:
        if isinstance(delta, Reasoning):
            reply.reasoning += delta.text
        elif isinstance(delta, Content):
            reply.content += delta.text
        elif isinstance(delta, CallStart):
            reply.calls.append(ToolCallText(delta.name))
        elif isinstance(delta, CallArguments):
            reply.calls[delta.index].arguments += delta.text
    return reply
