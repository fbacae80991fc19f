"""Reading what an assistant wrote: its thoughts, its answer, its tool calls, its turns among the answers of tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attrs

from mm.core.errors import DataError
from mm.runtime.text.messages import Message, ToolCall, embedded_json, parse_call

# a call, or what is wrong with how it is written
Call = ToolCall | DataError

# A JSON string is skipped as one, for it may hold the closing tag; where quotes do not pair, the first tag closes.
_CALL = re.compile(
    r'<tool_call>(?:((?:"(?:[^"\\\n]|\\.)*"|[^"])*?)</tool_call>|(.*?)(?:</tool_call>|(\Z)))', re.DOTALL
)
_RESULTS = re.compile(r"(?:\n?<tool_response>.*?</tool_response>)+\n?", re.DOTALL)
_RESULT_TAG = re.compile(r"<(/?tool_response)>")


def without_thinking(text: str) -> str:
    """The reply without its think block, whether or not the prompt had opened it, and without outer whitespace.

    Empty if a block is not closed: that model was still thinking.
    """
    before, closed, after = text.partition("</think>")
    text = after if closed else before
    return "" if "<think>" in text else text.strip()


def thinking(text: str) -> str | None:
    """What stands in the think block, whether or not the prompt had opened it; None where none is closed."""
    before, closed, _ = text.partition("</think>")
    return before.removeprefix("<think>").strip() if closed else None


def tagged(text: str) -> str | None:
    """What stands in the answer tags, if there is exactly one such pair."""
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    inner, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    return inner.strip() if closed else None


@attrs.frozen
class CallBlock:
    """One tool call as it was written: what stands between the tags, and whether the closing one is there."""

    body: str
    closed: bool = True


def split_calls(text: str) -> tuple[str, list[CallBlock]]:
    """The text around the tool calls, and the calls."""
    blocks = [CallBlock(m[2] if m[1] is None else m[1], closed=m[3] is None) for m in _CALL.finditer(text)]
    return _CALL.sub("", text), blocks


def read_call(block: CallBlock) -> Call:
    """The call, or what is wrong with how it is written."""
    try:
        if not block.closed:
            raise DataError("the call is not closed with </tool_call>", problem="tool call")
        return parse_call(embedded_json(block.body.strip(), "the call", dict), "the call")
    except DataError as error:
        return error


def read_calls(text: str) -> list[Call]:
    """The tool calls of a turn in their order, each read or with what is wrong with it. Thoughts call nothing."""
    return [read_call(block) for block in split_calls(without_thinking(text))[1]]


def with_calls(message: Message) -> tuple[Message, list[Call]]:
    """The assistant's turn with its calls taken out of the text, and the calls.

    Where one of them cannot be read, the text stays as it is: a history can only hold calls that are.
    """
    around, blocks = split_calls(message.content)
    calls = [read_call(block) for block in blocks]
    good = tuple(call for call in calls if isinstance(call, ToolCall))
    if len(good) < len(calls):
        return message, calls
    return attrs.evolve(message, content=around.strip() if good else message.content, tool_calls=good), calls


def transcript(turns: Sequence[str], results: Iterable[Sequence[str]]) -> str:
    """An episode as one text: each turn of the assistant and, behind it, what its calls gave, between response tags.

    Such tags that a turn or a result wrote itself stand there in square brackets: a model that makes up a tool's answer
    has not begun another turn.
    """
    parts = []
    for turn, given in zip(turns, [*results, ()], strict=False):
        parts += [_untagged(turn), *(f"<tool_response>{_untagged(text)}</tool_response>" for text in given)]
    return "\n".join(parts)


def _untagged(text: str) -> str:
    # removed, a tag could leave one behind that it stood in
    return _RESULT_TAG.sub(r"[\1]", text)


def turns_of(text: str) -> list[str]:
    """The assistant's turns in a transcript; a completion of one turn is one. The last may be empty."""
    return _RESULTS.split(text)
