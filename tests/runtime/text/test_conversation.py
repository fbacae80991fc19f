"""Turns under the names that other programs give their fields, nulls of tables, and turns that must not be learned."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from row_samples import assistant, learned_texts, turns, user

from mm.core.errors import DataError
from mm.runtime.text.conversation import MAX_CHARACTERS, parse_conversation
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.rows import ChatRow
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

ASKED, SAID = user("q"), assistant("a")
CALLS = [{"name": "add", "arguments": {"a": 1}}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def parse(*conversation: Any, **row: Any) -> tuple[Message, ...]:
    return parse_conversation({"messages": [*conversation], **row})[0]


# ---- names


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_reasoning_has_many_names(name: str) -> None:
    assert parse(ASKED, SAID | {name: "hm"})[1] == Message("assistant", "a", "hm")
    assert parse(ASKED, SAID | {name: "hm", "reasoning_content": "hm"})[1].reasoning_content == "hm"
    assert parse(ASKED, SAID | {name: ""})[1].reasoning_content == ""


@pytest.mark.parametrize("calls", [
    {"tool_calls": CALLS}, {"function_calls": CALLS}, {"function_call": CALLS[0]}, {"tool_call": json.dumps(CALLS[0])},
    {"tool_calls": [{"function": {"name": "add", "parameters": {"a": 1}}}]},
    {"tool_calls": [{"name": "add", "args": '{"a": 1}'}]},
    {"tool_calls": [{"name": "add", "input": {"a": 1}, "function": None}], "function_call": CALLS[0], "function_calls": []},
])  # fmt: skip
def test_calls_have_many_names(calls: dict[str, Any]) -> None:
    message = parse(ASKED, {"role": "assistant", **calls})[1]
    assert message == Message("assistant", "", None, (ToolCall("add", {"a": 1}),)) and message.unread == ()


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"reasoning": "x", "thinking": "y"}, "turn 2: both reasoning and thinking, which differ"),
        ({"tool_calls": CALLS, "function_call": {"name": "sub"}}, "turn 2: both tool_calls and function_call, which differ"),
        ({"tool_calls": [{"name": "f", "arguments": {}, "parameters": {"a": 1}}]},
         "turn 2: tool_calls[0]: both arguments and parameters, which differ"),
        ({"images": ["a.png"]}, "turn 2: images: only text can be learned"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, "turn 2: content[1] is a part of type 'image_url'"),
        ({"content": [{"type": "text", "text": "a", "value": "b"}]}, "turn 2: content[0]: both text and value"),
        ({"content": ["a"]}, "turn 2: content[0] is text, expected a part"),
        ({"weight": 0.5}, "turn 2: weight is 0.5: only 0 (not learned) and 1 (learned) are supported"),
        ({"loss": "false"}, 'turn 2: loss is "false": only 0'),
        ({"train": True, "loss": 0}, "turn 2: two of weight, loss, train, trainable contradict each other"),
        ({"content": "x" * (MAX_CHARACTERS + 1)}, "the conversation has 1,048,578 characters, more than 1,048,576"),
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be_learned_says_why(turn: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        parse(ASKED, SAID | turn)


def test_parts_of_text_are_joined_under_every_name() -> None:
    parts = [{"type": "text", "text": "a", "value": None}, {"type": "text", "value": "b"}, {"type": "input_text", "text": "c"}]
    assert parse({"role": "user", "content": parts}, SAID)[0].content == "abc"


def test_keys_that_nothing_reads_are_kept_apart_and_change_no_equality() -> None:
    odd = SAID | {"toolCalls": [1], "mood": "", "tools": None, "tool_calls": [{"name": "f", "nonce": 3, "type": "function"}]}
    message = parse(ASKED | {"name": "Ann", "reasoning": "x", "weight": 1}, odd)
    assert dict(message[0].unread) == {"name": '"Ann"', "reasoning": '"x"', "weight": "1"}
    assert dict(message[1].unread) == {"tool_calls.nonce": "3", "toolCalls": "[1]"}
    assert message[1] == Message("assistant", "a", None, (ToolCall("f"),))
    assert repr(message[1]) != repr(parse(ASKED, SAID | {"tool_calls": [{"name": "f"}]})[1])


def test_a_result_keeps_its_tool_and_its_call() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": CALLS[0]}]}
    messages = parse(ASKED, call, {"role": "tool", "content": "1", "name": "add", "tool_call_id": "c1"}, SAID)
    assert messages[1].as_dict()["tool_calls"] == [{"id": "c1", "type": "function", "function": CALLS[0]}]
    assert messages[2].as_dict() == {"role": "tool", "content": "1", "name": "add", "tool_call_id": "c1"}
    assert "name" not in messages[3].as_dict() and not any(message.unread for message in messages)


# ---- nulls

CITY = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.mark.parametrize(
    ("parameters", "arguments", "kept"),
    [
        (CITY["parameters"], {"city": "Rome", "x": None, "y": None}, {"city": "Rome"}),
        (CITY["parameters"], {"city": None}, {}),
        ({"properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
                         "c": {"enum": [1, None]}, "d": {"type": "str", "nullable": True}, "e": {"$ref": "#/$defs/n"}, "f": {}},
          "$defs": {"n": {"type": "None"}}}, dict.fromkeys("abcdefg"), dict.fromkeys("abcdef")),
        ({"properties": {"o": {"properties": {"a": {"type": "null"}}}, "l": {"items": {"properties": {"n": {"type": "null"}}}}}},
         {"o": {"a": None, "b": None}, "l": [{"n": None, "m": None}, None]}, {"o": {"a": None}, "l": [{"n": None}, None]}),
        ({"additionalProperties": {"type": ["null", "string"]}}, {"a": None}, {"a": None}),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, {"a": None, "b": {"c": None}, "d": {}}, {"d": {}}),
        ({"type": "colour"}, {"a": None, "b": 1}, {"b": 1}),
        (None, {"a": None, "b": {"c": {"d": None}}, "e": [None]}, {"e": [None]}),
    ],
)  # fmt: skip
def test_a_null_argument_is_missing_unless_its_schema_allows_it(parameters: Any, arguments: Any, kept: Any) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}, {"name": "other"}]
    call = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": arguments}]}
    assert parse(ASKED, call, tools=tools)[1].tool_calls[0].arguments == kept
    assert parse(ASKED, call)[1] == parse(ASKED, call, tools=[{"name": "weather"}])[1]


def test_null_keys_of_a_schema_are_missing() -> None:
    kept = {"type": ["string", "null"], "default": None}
    properties = {"a": {"type": "string", "enum": None, "default": None}, "b": kept, "c": None, "d": {"type": None}, "e": {}}
    padded = {"name": "f", "description": None, "parameters": {"type": "object", "required": None, "properties": properties}}
    clean = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}, "b": kept, "e": {}}}}
    for tools in ([padded], json.dumps([padded])):
        assert parse_conversation({"messages": [ASKED, SAID], "tools": tools})[1] == (clean,)


# ---- what is not learned


@settings(deadline=None)
@given(st.data())
def test_a_turn_that_is_flagged_is_not_learned_and_nothing_else_changes(data: st.DataObject) -> None:
    tokenizer, (made, learned) = tiny_tokenizer(), data.draw(turns())
    replies = [number for number, turn in enumerate(made) if turn["role"] == "assistant"]
    excluded = data.draw(st.sets(st.sampled_from(replies)))
    flags = st.sampled_from([{"weight": 0}, {"loss": False}, {"train": 0.0}, {"trainable": 0}])
    flagged = [turn | (data.draw(flags) if number in excluded else {}) for number, turn in enumerate(made)]
    plain, rest = (ChatRow(*parse_conversation({"messages": row})).encode(tokenizer, 1 << 20) for row in (made, flagged))
    expected = [text.encode() for number, text in zip(replies, learned, strict=True) if number not in excluded]
    assert [text for unit in rest.units for text in learned_texts(tokenizer, unit[0])] == expected
    assert not rest.units or rest.units[0][0][0] == plain.units[0][0][0]


def test_a_template_that_does_not_tell_turns_apart_is_an_error_of_the_row(tokenizer: Tokenizer) -> None:
    whole = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    row = ChatRow(parse(ASKED, SAID | {"weight": 0}, ASKED, SAID))
    with pytest.raises(DataError, match="marks turn 1: content as written by the assistant"):
        row.encode(tokenizer.with_template(whole), 100)
