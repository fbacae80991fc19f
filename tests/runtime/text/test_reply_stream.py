"""Replies that are parsed while they are drawn: known ones, and the law that the pieces in which they come do not matter."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from reply_cases import CALL, WRITTEN, Case, composed

from mm.runtime.text.call_blocks import CallBlock, CallSplitter
from mm.runtime.text.messages import ToolCall
from mm.runtime.text.replies import extract_calls, read_call, read_calls
from mm.runtime.text.reply_stream import CallArguments, CallEnd, CallStart, Delta, ReplyStream
from mm.runtime.text.thoughts import Content, Reasoning, answer

CASES = [*WRITTEN, *composed(240, seed=7)]


def deltas(pieces: Sequence[str], thinking: bool | None, tools: bool) -> list[Delta]:
    stream = ReplyStream(thinking, tools)
    return [*(delta for piece in pieces for delta in stream.push(piece)), *stream.finish()]


def joined(found: Sequence[Delta]) -> list[Delta]:
    """The deltas with neighbours of one kind made one. Checks that each says something, and that a call is one run of them."""
    merged: list[Delta] = []
    for delta in found:
        before = merged[-1] if merged else None
        if isinstance(delta, Reasoning | Content):
            assert delta.text
            kind = type(delta)
            same = isinstance(before, kind)
            merged[-1 if same else len(merged) :] = [kind((before.text if isinstance(before, kind) else "") + delta.text)]
        elif isinstance(delta, CallArguments) and isinstance(before, CallArguments):
            merged[-1] = CallArguments(delta.index, before.text + delta.text)
        else:
            merged.append(delta)
    starts = [at for at, delta in enumerate(merged) if isinstance(delta, CallStart)]
    for index, at in enumerate(starts):
        start, arguments, end = merged[at : at + 3]
        assert isinstance(start, CallStart) and isinstance(arguments, CallArguments)
        assert (start.index, arguments.index, end) == (index, index, CallEnd(index))
    assert len(merged) - sum(isinstance(delta, Reasoning | Content) for delta in merged) == 3 * len(starts)
    return merged


def parts(found: Sequence[Delta]) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """The thoughts, the content and the calls of all deltas."""
    found = joined(found)
    names = [delta.name for delta in found if isinstance(delta, CallStart)]
    arguments = [delta.text for delta in found if isinstance(delta, CallArguments)]
    return (
        "".join(delta.text for delta in found if isinstance(delta, Reasoning)),
        "".join(delta.text for delta in found if isinstance(delta, Content)),
        tuple(zip(names, arguments, strict=True)),
    )


def test_the_table_is_long() -> None:
    assert len(CASES) >= 300 and len({(case.text, case.thinking, case.tools) for case in CASES}) >= 300


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_reply_is_parsed(case: Case) -> None:
    draw = random.Random(case.text)
    cuts = sorted(draw.sample(range(len(case.text) + 1), min(5, len(case.text))))
    some = [case.text[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    for pieces in ([case.text], list(case.text), some):
        found = deltas(pieces, case.thinking, case.tools)
        assert parts(found) == (case.thoughts or "", case.content, case.calls)
    stream = ReplyStream(case.thinking, case.tools)
    stream.push(case.text), stream.finish()
    assert (stream.thought or case.thinking is False) == (case.thoughts is not None)


def test_a_reply_is_told_as_soon_as_it_is_certain() -> None:
    stream = ReplyStream(None, tools=True)
    pieces = [
        ("<think>\nI", [Reasoning("I")]), (" am\n", [Reasoning(" am")]), ("</thi", []), ("nk>\n", []),
        ("\nTea <", [Content("Tea")]),
        (" 4", [Content(" < 4")]), ("\n<tool_call>{", []), ('"name": "f", "arguments": {"a": ', []), ("1}}</tool_call", []),
        (">", [CallStart(0, "f"), CallArguments(0, '{"a": 1}'), CallEnd(0)]), ("\n", []),
    ]  # fmt: skip
    assert [(piece, stream.push(piece)) for piece, _ in pieces] == pieces
    assert stream.finish() == []


def test_a_call_in_thoughts_is_told_when_they_end() -> None:
    stream = ReplyStream(True, tools=True)
    assert stream.push(f"I look <tool_call>x</tool_call>: {CALL}") == [
        Reasoning("I look "), Reasoning("<tool_call>x</tool_call>"), Reasoning(": "),
    ]  # fmt: skip
    assert stream.push("\n so") == []
    assert parts(stream.finish()) == ("", "\n so", (("f", '{"a": 1}'),))


# --- the law ---

_ALPHABET = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", '"', '"', "\\", "\n", "{", "}", "[", ",", ": ", "<", "</", ">",
    "tool_call>", "\\u8336", r"\ud83c", "茶", "🍵", "é", " ", "a", "word ", '"name": "f"', '{"name": "f"', ', "arguments": ',
    '{"a": 1}', "}}", "null", '<tool_call>{"name": "f", "arguments": {', CALL, "}}</tool_call>", '"arguments": "{}"',
    '{"function": ', "\n</think>\n\n", "<think>\n",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(_ALPHABET), max_size=24).map("".join)
_CALL = re.compile(r'<tool_call>(?:((?:"(?:[^"\\\n]|\\.)*"|[^"])*?)</tool_call>|(.*?)(?:</tool_call>|(\Z)))', re.DOTALL)


def reference(text: str, thinking: bool | None, tools: bool) -> tuple[str, str, list[tuple[str, dict[str, object]]]]:
    """The thoughts, the content and the calls, by regular expressions over the whole text."""
    thoughts, rest = "", text
    if thinking is not False and (text.startswith("<think>") or thinking):
        inner = re.sub(r"\A<think>\n?", "", text)
        thoughts, closed, rest = inner.partition("</think>")
        rest = re.sub(r"\A\n\n", "", rest)
        if not closed:
            good = (m.start() for m in _CALL.finditer(inner) if tools and _parsed(m))
            at = next(good, len(inner))
            thoughts, rest = inner[:at], inner[at:]
        thoughts = re.sub(r"\n\Z", "", thoughts)
    if not tools:
        return thoughts, rest, []
    calls = [call for match in _CALL.finditer(rest) if (call := _parsed(match))]
    content = _CALL.sub(lambda match: "" if _parsed(match) else match[0], rest)
    return thoughts, content.rstrip() if calls else content, [(call.name, dict(call.arguments)) for call in calls]


def _parsed(match: re.Match[str]) -> ToolCall | None:
    call = read_call(CallBlock(match[2] if match[1] is None else match[1], closed=match[3] is None))
    return call if isinstance(call, ToolCall) else None


def law(text: str, sizes: Sequence[int], thinking: bool | None, tools: bool) -> None:
    whole = deltas([text], thinking, tools)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    for cut in ([*pieces, text[at:]], list(text)):
        assert joined(deltas(cut, thinking, tools)) == joined(whole)
    thoughts, content, calls = parts(whole)
    read = [(name, json.loads(arguments)) for name, arguments in calls]
    assert (thoughts, content, read) == reference(text, thinking, tools)
    message = answer(text, thinking, calls=tools)
    message, every = extract_calls(message) if tools else (message, [])
    good = [call for call in every if isinstance(call, ToolCall)]
    assert (thoughts, read) == (message.reasoning_content or "", [(call.name, call.arguments) for call in good])
    assert (content == message.content) or (len(good) < len(every) and good)
    if tools and thinking is not False and (message.reasoning_content is not None or "</think>" not in text):
        assert [(c.name, c.arguments) for c in read_calls(text) if isinstance(c, ToolCall)] == read


SPLITS = st.lists(st.integers(0, 9), max_size=40)
MODES = st.sampled_from([(thinking, tools) for thinking in (None, True, False) for tools in (True, True, False)])


@settings(max_examples=300, deadline=None)
@given(TEXTS, SPLITS, MODES)
def test_the_pieces_do_not_matter(text: str, sizes: list[int], mode: tuple[bool | None, bool]) -> None:
    law(text, sizes, *mode)


@pytest.mark.law
@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS, SPLITS, MODES)
def test_the_pieces_do_not_matter_in_any_text(text: str, sizes: list[int], mode: tuple[bool | None, bool]) -> None:
    law(text, sizes, *mode)


@given(st.text(max_size=30), SPLITS, MODES)
def test_no_character_is_special(text: str, sizes: list[int], mode: tuple[bool | None, bool]) -> None:
    law(text, sizes, *mode)


@given(TEXTS, SPLITS)
def test_nothing_is_lost_or_doubled(text: str, sizes: list[int]) -> None:
    splitter, given_back, at = CallSplitter(), "", 0
    for size in [*sizes, len(text)]:
        given_back += "".join(map(str, splitter.push(text[at : at + size])))
        at += size
        assert given_back + splitter.held() == text[:at]
    assert given_back + "".join(map(str, splitter.finish())) == text


_LONG = {
    "opening tags": "<tool_call>" * 100_000,
    "closing tags": "<tool_call>" + '"</tool_call>' * 8_000,
    "calls in strings": '<tool_call>"' + r"\"<tool_call>\"</tool_call>" * 4_000 + '"\n',
    "strings over lines": '<tool_call>"' + '"\n<tool_call>"</tool_call>' * 4_000,
    "tags before an odd quote": "<tool_call>\n" * 8_000 + '"\n' + "</tool_call>" * 8_000,
    "a thought": "<think>" + "a</thin" * 14_000,
    "calls in a thought": "<think>" + CALL * 1_500,
    "spaces": " " * 100_000,
    "an argument": '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 100_000 + '"}}</tool_call>',
    "backslashes": "<tool_call>" + "\\" * 100_000,
}


@pytest.mark.parametrize("text", _LONG.values(), ids=_LONG)
def test_long_replies_take_linear_time(text: str) -> None:
    """Quadratic time would run into the suite's time limit."""
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    assert joined(deltas(pieces, None, True)) == joined(deltas([text], None, True))
