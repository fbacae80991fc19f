"""Reading what an assistant wrote: thoughts, tool calls, turns of an episode."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, strategies as st

from mm.core.errors import DataError
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.replies import (  # fmt: skip
    answer_text,
    extract_calls,
    read_calls,
    split_calls,
    think_text,
    transcript,
    turns_of,
    without_thinking,
)

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "茶"}}\n</tool_call>'
SEARCH = ToolCall("search", {"query": "茶"})


@pytest.mark.parametrize(
    ("text", "thoughts", "reply"),
    [
        ("<think>\nA\n</think>\n\nB", "A", "B"),
        ("A\n</think>\n\nB", "A", "B"),  # the prompt has opened the block
        ("<think></think>B", "", "B"),
        ("B", None, "B"),
        ("<think>A", None, ""),
        ("A</think>B<think>", "A", ""),
    ],
)
def test_thoughts_and_reply(text: str, thoughts: str | None, reply: str) -> None:
    assert (think_text(text), without_thinking(text)) == (thoughts, reply)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 12\n</answer>", "12"), ("so <answer>12</answer>.", "12"), ("<answer></answer>", ""), ("12", None),
        ("<answer>12", None), ("</answer>12<answer>", None), ("<answer>1</answer><answer>2</answer>", None),
    ],
)  # fmt: skip
def test_answer_tags(text: str, answer: str | None) -> None:
    assert answer_text(text) == answer


def test_calls_are_read_in_order_with_the_text_around_them() -> None:
    around, blocks = split_calls(f"First {CALL} then\n{CALL} done")
    assert around == "First  then\n done" and len(blocks) == 2
    assert read_calls(f"First {CALL} then\n{CALL} done") == [SEARCH, SEARCH]
    assert read_calls(f"<think>{CALL}</think>no") == []
    assert read_calls(f"<think>so {CALL}") == read_calls(f"so {CALL}") == [SEARCH]  # the call has ended the thoughts


def test_a_closing_tag_inside_a_string_closes_nothing() -> None:
    arguments = {"query": 'a </tool_call> and \\" <tool_call>'}
    text = f"<tool_call>{json.dumps({'name': 'search', 'arguments': arguments})}</tool_call>{CALL}"
    assert read_calls(text) == [ToolCall("search", arguments), SEARCH]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"name": "a"', "the call is not closed"),
        ('{"name": "a"</tool_call>', "not valid JSON"),
        ("{'name': 'a'}</tool_call>", "not valid JSON"),
        ('{"name": "a", "arguments": {"x": NaN}}</tool_call>', "NaN"),
        ("[1]</tool_call>", "a list, expected an object"),
        ('{"arguments": {}}</tool_call>', "no function name"),
        ('{"name": "a", "arguments": [1]}</tool_call>', "a list, expected an object"),
        ("[" * 100_000 + "</tool_call>", "nested deeper"),
        ("</tool_call>", "not valid JSON"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(body: str, said: str) -> None:
    first, *rest = read_calls(f"{CALL}<tool_call>{body}")[1:]
    assert isinstance(first, DataError) and said in first.reason and not rest


def test_a_stray_quote_spoils_one_call_only() -> None:
    spoilt, good = read_calls(f'<tool_call>{{"name": "a}}</tool_call> {CALL}')
    assert isinstance(spoilt, DataError) and good == SEARCH


def test_a_history_holds_calls_that_can_be_read() -> None:
    message, calls = extract_calls(Message("assistant", f"Wait.\n{CALL}", "hm"))
    assert message == Message("assistant", "Wait.", "hm", (SEARCH,)) and calls == [SEARCH]
    spoilt = Message("assistant", f"{CALL}<tool_call>")
    assert extract_calls(spoilt)[0] == spoilt and len(extract_calls(spoilt)[1]) == 2
    plain = Message("assistant", " no call ")
    assert extract_calls(plain) == (plain, [])


PLAIN = st.text(alphabet="ab<>/ {}\"茶\\", max_size=20)
MADE_UP = st.sampled_from(["<tool_response>", "</tool_response>", "<tool_<tool_response>x</tool_</tool_response>response>"])


@given(st.lists(PLAIN, min_size=1, max_size=4).flatmap(
    lambda turns: st.tuples(st.just(turns), st.lists(
        st.lists(st.one_of(PLAIN, MADE_UP), min_size=1, max_size=3),
        min_size=len(turns) - 1, max_size=len(turns) - 1,
    ))
))  # fmt: skip
def test_a_transcript_gives_its_turns_again(episode: tuple[list[str], list[list[str]]]) -> None:
    turns, results = episode
    assert turns_of(transcript(turns, results)) == turns


TAGGED = st.lists(st.one_of(PLAIN, MADE_UP, st.sampled_from([CALL, "</think>"])), max_size=6).map("".join)


@given(st.lists(TAGGED, min_size=1, max_size=3))
def test_a_model_that_makes_up_answers_of_tools_begins_no_turn(turns: list[str]) -> None:
    """Nor a call: what is read behind them is what is made."""
    found = turns_of(transcript(turns, [["2"]] * (len(turns) - 1)))
    assert [read_calls(turn) for turn in found] == [read_calls(turn) for turn in turns]


@given(st.text(max_size=200), st.text(max_size=50))
def test_no_text_makes_reading_raise(text: str, body: str) -> None:
    for said in (text, f"<tool_call>{body}</tool_call>{text}", f"{text}<tool_call>{body}", f"<think>{text}</think>{body}"):
        turns_of(said), think_text(said), answer_text(said)
        message, calls = extract_calls(Message("assistant", said))
        assert len(calls) >= len(message.tool_calls)
        assert len(read_calls(said)) <= said.count("<tool_call>")


_SPLIT = re.compile(r"(?:\n?<tool_response>.*?</tool_response>)+\n?", re.DOTALL)


@given(st.lists(st.sampled_from(["<tool_response>", "</tool_response>", "\n", "a", "<tool"]), max_size=14).map("".join))
def test_turns_are_what_stands_between_results(text: str) -> None:
    assert turns_of(text) == _SPLIT.split(text)


_CALL = re.compile(r'<tool_call>(?:((?:"(?:[^"\\\n]|\\.)*"|[^"])*?)</tool_call>|(.*?)(?:</tool_call>|(\Z)))', re.DOTALL)
_PARTS = ["<tool_call>", "</tool_call>", '"', "\\", "\n", "a", '<tool_call>"</tool_call>']


@given(st.lists(st.sampled_from(_PARTS), max_size=12).map("".join))
def test_calls_end_at_the_first_closing_tag_outside_of_strings(text: str) -> None:
    rest, blocks = split_calls(text)
    expected = [(m[2] if m[1] is None else m[1], m[3] is None) for m in _CALL.finditer(text)]
    assert (rest, [(block.body, block.closed) for block in blocks]) == (_CALL.sub("", text), expected)


def test_many_calls_are_read_in_linear_time() -> None:
    assert len(split_calls('<tool_call>"</tool_call>" ' * 100_000)[1]) == 100_000


@pytest.mark.parametrize("text", ["<tool_response>", "\n<tool_response></tool_response>\nx", "<tool_response>\n"])
def test_many_tags_are_read_in_linear_time(text: str) -> None:
    assert "".join(turns_of(text * 200_000)) in (text * 200_000, "x" * 200_000)
