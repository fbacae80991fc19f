"""The parsing of model replies: the think block, the tagged answer, tool calls, and the turns of an episode's transcript."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attrs

from mm.core.errors import DataError
from mm.runtime.text.call_blocks import CallBlock, CallSplitter
from mm.runtime.text.messages import Message, ToolCall, embedded_json, parse_call

# a tool call that was parsed, or the error if its text is malformed
Call = ToolCall | DataError

THINK, THINK_END = "<think>", "</think>"
_RESULT, _RESULT_END = "<tool_response>", "</tool_response>"
_RESULT_TAG = re.compile(r"<(/?tool_response)>")


def without_thinking(text: str) -> str:
    """The reply without its think block and without outer whitespace; the block may have been opened by the prompt.

    Empty if a think block is not closed: the model was still thinking.
    """
    before, closed, after = text.partition(THINK_END)
    text = after if closed else before
    return "" if THINK in text else text.strip()


def think_text(text: str) -> str | None:
    """The text of the think block, which may have been opened by the prompt; None if no block is closed."""
    before, closed, _ = text.partition(THINK_END)
    return before.removeprefix(THINK).strip() if closed else None


def answer_text(text: str) -> str | None:
    """The text between the answer tags; None unless there is exactly one pair of them."""
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    inner, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    return inner.strip() if closed else None


def split_calls(text: str) -> tuple[str, list[CallBlock]]:
    """The text without its tool calls, and the calls in their order."""
    splitter = CallSplitter()
    parts = [*splitter.push(text), *splitter.finish()]
    return "".join(part for part in parts if isinstance(part, str)), [part for part in parts if isinstance(part, CallBlock)]


def read_call(block: CallBlock) -> Call:
    """The parsed call, or the DataError if it is malformed; does not raise."""
    try:
        if not block.closed:
            raise DataError("the call is not closed with </tool_call>", problem="tool call")
        return parse_call(embedded_json(block.body.strip(), "the call", dict), "the call")
    except DataError as error:
        return error


def read_calls(text: str) -> list[Call]:
    """The tool calls of a turn in their order, each parsed or as its error. Calls inside a think block do not count, unless
    nothing closes it: a model that calls from within its thoughts has left them."""
    before, closed, after = text.partition(THINK_END)
    return [read_call(block) for block in split_calls(after if closed else before)[1]]


def extract_calls(message: Message) -> tuple[Message, list[Call]]:
    """The assistant's message with its calls moved from the text to `tool_calls`, and the calls.

    If one of the calls is malformed, the message is returned unchanged, since `tool_calls` cannot hold it.
    """
    rest, blocks = split_calls(message.content)
    calls = [read_call(block) for block in blocks]
    valid = tuple(call for call in calls if isinstance(call, ToolCall))
    if len(valid) < len(calls):
        return message, calls
    return attrs.evolve(message, content=rest.rstrip() if valid else message.content, tool_calls=valid), calls


def transcript(turns: Sequence[str], results: Iterable[Sequence[str]]) -> str:
    """An episode as one text: each turn of the assistant, followed by the results of its calls between response tags.

    Response tags inside a turn or a result are written in square brackets: a model that makes up a tool result does not
    thereby start a new turn.
    """
    parts = []
    for turn, outputs in zip(turns, [*results, ()], strict=False):
        parts += [_escape_tags(turn), *(f"<tool_response>{_escape_tags(text)}</tool_response>" for text in outputs)]
    return "\n".join(parts)


def _escape_tags(text: str) -> str:
    # replaced and not removed: removing a tag could join the text around it into another tag
    return _RESULT_TAG.sub(r"[\1]", text)


def turns_of(text: str) -> list[str]:
    """The assistant's turns in a transcript; a text without results is one turn. The last turn may be empty.

    The line breaks around results belong to no turn. An opening tag without a closing one is text.
    """
    turns, start = [], 0
    while results := _results_span(text, start):
        begin, end = results
        turns.append(text[start : begin - text[start:begin].endswith("\n")])
        start = end + text.startswith("\n", end)
    return [*turns, text[start:]]


def _results_span(text: str, start: int) -> tuple[int, int] | None:
    """The start and the end of the next results, of which several may follow each other; None if there are no more."""
    begin = opened = text.find(_RESULT, start)
    end = -1
    while opened >= 0 and (closed := text.find(_RESULT_END, opened)) >= 0:
        end = closed + len(_RESULT_END)
        following = end + text.startswith("\n", end)
        opened = following if text.startswith(_RESULT, following) else -1
    return (begin, end) if end >= 0 else None
