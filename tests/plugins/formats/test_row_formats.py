"""Every format: which rows are whose, what is learned of them, and what is said of a bad one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from row_samples import SAMPLES, TOOL, assistant, learned_texts, user

from mm.contracts import Position
from mm.core.errors import DataError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.plugins.formats.preference.row import PreferenceRow
from mm.plugins.formats.prompt.row import PromptRow
from mm.plugins.formats.unpaired.row import UnpairedRow
from mm.runtime.data.reader import RowReader
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_rows, tiny_tokenizer, tiny_units

AT = Position(path="f.jsonl", line=1)
ASKED, SAID = user("hi"), assistant("hello")
DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def formats() -> list[FormatSpec]:
    return PluginManager.discover(environ={}).specs(FormatSpec)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def names(formats: list[FormatSpec], row: dict[str, Any], kind: str = "") -> list[str]:
    return [spec.name for spec in formats if spec.fits(row, kind)]


def parse(formats: list[FormatSpec], row: dict[str, Any], kind: str = "") -> Any:
    return RowReader(formats, kind).parse(AT, row)


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_has_one_format_and_its_answers_are_learned(
    name: str, data: st.DataObject, formats: list[FormatSpec], tokenizer: Tokenizer
) -> None:
    row, expected = data.draw(SAMPLES[name])
    assert names(formats, row) == [name]
    encoded = parse(formats, row).encode(tokenizer, 1 << 20)
    (unit,) = encoded.units
    assert [learned_texts(tokenizer, sequence) for sequence in unit] == [[a.encode() for a in side] for side in expected]
    assert not encoded.truncated


@pytest.mark.parametrize("kind", ["text", "chat", "preference", "unpaired", "prompt", "episode"])
def test_the_tiny_rows_of_every_kind_make_units(kind: str, tokenizer: Tokenizer) -> None:
    units = tiny_units(kind, tokenizer)
    assert units is not None and len(units) == len(tiny_rows(kind)) > 0
    assert {len(unit.sequences) for unit in units} == {2 if kind == "preference" else 1}


def test_what_a_conversation_is_depends_on_what_is_needed(formats: list[FormatSpec]) -> None:
    finished, open_ = {"messages": [ASKED, SAID]}, {"messages": [ASKED, assistant("")]}
    assert (names(formats, finished), names(formats, open_)) == (["chat"], ["prompt"])
    assert names(formats, finished, "prompt") == names(formats, open_, "prompt") == ["prompt"]
    assert names(formats, open_, "chat") == ["chat"]  # where chats are needed, an unanswered one is a bad chat
    with pytest.raises(DataError, match="turn 2: the assistant's content is empty"):
        parse(formats, open_, "chat")
    assert names(formats, finished | {"gt": ["4"]}) == ["episode"]
    assert parse(formats, finished, "prompt").messages == (Message("user", "hi"),)
    rated = {"prompt": "hi", "completion": "x", "label": True}
    assert names(formats, rated, "chat") == []  # nobody wants to imitate a bad answer unasked


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "x", "messages": [ASKED, SAID]}, "chat (chat rows), text (text rows)"),
        ({"text": "x", "instruction": "i", "output": "o"}, "alpaca (chat rows), text (text rows)"),
        ({"prompt": "x", "messages": [ASKED, SAID]}, "chat (chat rows), prompt (prompt rows)"),
    ],
)
def test_two_readings_are_an_error_that_names_both(formats: list[FormatSpec], row: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"fits several formats: {found}")):
        parse(formats, row)


def test_a_row_of_another_format_does_not_pass_in_a_file(formats: list[FormatSpec]) -> None:
    reader = RowReader(formats)
    reader.parse(AT, {"prompt": "a", "completion": "b"})
    with pytest.raises(DataError, match=r"f.jsonl:2: not a row of format completion, unlike the .*; without 'label'"):
        reader.parse(Position(path="f.jsonl", line=2), {"prompt": "a", "completion": "b", "label": False})
    reader = RowReader(formats)
    reader.parse(AT, {"messages": [ASKED]})
    with pytest.raises(DataError, match="not a row of format prompt"):
        reader.parse(AT, {"messages": [ASKED, SAID]})


def test_a_null_is_a_field_that_is_not_there(formats: list[FormatSpec]) -> None:
    columns = dict.fromkeys(("text", "messages", "prompt", "completion", "label", "chosen", "rejected", "gt"))
    assert parse(formats, columns | {"messages": [ASKED, SAID]}).messages[1].content == "hello"
    assert parse(formats, columns | {"prompt": "hi", "completion": "hello"}).begin == 1
    with pytest.raises(DataError, match=r"f\.jsonl:1: no text"):
        parse(formats, {"text": None})


def test_sharegpt_names_its_speakers(formats: list[FormatSpec]) -> None:
    said = [("system", "s"), ("human", "q"), ("function_call", '[{"name": "add", "arguments": {"a": 1}}]'),
            ("observation", "2"), ("gpt", "two")]  # fmt: skip
    row = parse(formats, {"conversations": [{"from": f, "value": v} for f, v in said], "tools": [TOOL]})
    assert row.messages == (
        Message("system", "s"), Message("user", "q"), Message("assistant", "", None, (ToolCall("add", {"a": 1}),)),
        Message("tool", "2"), Message("assistant", "two"),
    )  # fmt: skip
    assert row.tools == (TOOL,)


CALLED = (Message("user", "q"), Message("assistant", "", None, (ToolCall("add", {"a": 1}),)))
RESULT = (Message("tool", '{"sum": 2}'), Message("assistant", "two"))
ARGUMENTS = '{"name": "add", "arguments": {"a": 1}}'


def test_hermes_keeps_calls_and_results_in_tags(formats: list[FormatSpec]) -> None:
    said = [("human", "q"), ("gpt", f"<tool_call>\n{ARGUMENTS}\n</tool_call>"),
            ("tool", '<tool_response>\n{"sum": 2}\n</tool_response>'), ("gpt", "two")]  # fmt: skip
    turns = [{"from": f, "value": v} for f, v in said]
    assert parse(formats, {"conversations": turns}).messages == (*CALLED, *RESULT)
    turns[1]["value"] = f"I add.\n<tool_call>{ARGUMENTS}</tool_call>\n<tool_call>{ARGUMENTS}</tool_call>"
    twice = parse(formats, {"conversations": turns}).messages[1]
    assert twice == Message("assistant", "I add.", None, CALLED[1].tool_calls * 2)
    turns[1]["value"] = "Write <tool_call>{}</tool_call> to call."
    assert parse(formats, {"conversations": turns[:2]}).messages[1].content == turns[1]["value"]
    turns[1]["value"] = "<tool_call>{'name': 'add'}</tool_call>"
    with pytest.raises(DataError, match="turn 2: tool_call is not valid JSON"):
        parse(formats, {"conversations": turns})


def test_xlam_answers_with_calls(formats: list[FormatSpec]) -> None:
    for spelt in (str, json.loads):
        row = parse(formats, {"id": 1, "query": "q", "tools": spelt(json.dumps([TOOL])), "answers": spelt(f"[{ARGUMENTS}]")})
        assert (row.messages, row.tools) == (CALLED, (TOOL,))


def test_glaive_is_one_text(formats: list[FormatSpec]) -> None:
    tools = f"{json.dumps(TOOL, indent=1)}\n\n{json.dumps(TOOL | {'name': 'sub'}, indent=1)}"
    chat = ("USER: q\n\n\nASSISTANT: <functioncall> {\"name\": \"add\", \"arguments\": '{\"a\": 1}'} <|endoftext|>\n\n\n"
            'FUNCTION RESPONSE: {"sum": 2}\n\n\nASSISTANT: two <|endoftext|>\n\n\n')  # fmt: skip
    row = parse(formats, {"system": f"SYSTEM: You can add. Use it -\n{tools}\n", "chat": chat})
    assert row.messages == (Message("system", "You can add. Use it"), *CALLED, *RESULT)
    assert [tool["name"] for tool in row.tools] == ["add", "sub"]
    assert parse(formats, {"system": "SYSTEM: Plain.", "chat": "USER: q\nASSISTANT: a"}).tools == ()


def test_alpaca_puts_input_below_the_instruction(formats: list[FormatSpec]) -> None:
    row = parse(formats, {"instruction": "i", "input": "in", "output": "o", "system": "s", "history": [["q", "a"]]})
    said = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "i\nin"), ("assistant", "o")]
    assert row.messages == tuple(Message(role, text) for role, text in said)


NO = assistant("no")
HI = Message("user", "hi")
PAIR = PreferenceRow((HI, Message("assistant", "hello")), (HI, Message("assistant", "no")), (), 1)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [ASKED, SAID], "rejected": [ASKED, NO]},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, NO], "prompt": "hi", "messages": [ASKED, SAID]},
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        {"prompt": [ASKED], "chosen": SAID, "rejected": [NO]},
        {"messages": [ASKED], "chosen": "hello", "rejected": "no"},
        {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "hello"},
         "rejected": {"from": "gpt", "value": "no"}},
        {"instruction": "hi", "input": "", "chosen": "hello", "rejected": "no"},
        {"chosen": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "rejected": [ASKED, NO]},
    ],
)  # fmt: skip
def test_every_shape_of_a_preference_gives_the_same_pair(formats: list[FormatSpec], row: dict[str, Any]) -> None:
    assert parse(formats, row) == PAIR


def test_a_pair_is_cut_on_both_sides_and_dropped_when_one_is_gone(tokenizer: Tokenizer) -> None:
    whole = PAIR.encode(tokenizer, 1000)
    ((chosen, rejected),) = whole.units
    cut = PAIR.encode(tokenizer, len(rejected[0]) - 2)
    assert cut.truncated and [len(ids) for ids, _ in cut.units[0]] == [len(rejected[0]) - 2] * 2
    begin = chosen[1].index(True)
    assert PAIR.encode(tokenizer, begin).units == [] != PAIR.encode(tokenizer, begin + 1).units


def test_the_label_of_an_answer_is_a_value(formats: list[FormatSpec], tokenizer: Tokenizer) -> None:
    for label in (True, False, 1, 0):
        row = parse(formats, {"prompt": "hi", "completion": "hello", "label": label})
        assert isinstance(row, UnpairedRow)
        assert row.encode(tokenizer, 100).values == [{"label": float(label)}]


def test_a_prompt_ends_where_the_assistant_begins_and_keeps_its_row(formats: list[FormatSpec], tokenizer: Tokenizer) -> None:
    row = {"messages": [ASKED, assistant("")], "answer": "4", "level": 2}
    found = parse(formats, row)
    assert isinstance(found, PromptRow) and found.fields == row and found.keep
    (((ids, learn),),) = found.encode(tokenizer, 100).units
    assert tokenizer.decode(ids, skip_special=False).endswith("<|im_start|>assistant\n") and not any(learn)
    assert found.encode(tokenizer, len(ids) - 1).units == []
    episode = parse(formats, row | {"gt": ["4"], "tools": [TOOL]})
    assert (episode.kind, episode.gt, episode.fields["answer"], episode.keep) == ("episode", ("4",), "4", True)


BAD = [
    ({"conversations": [{"from": "elf", "value": "x"}]}, "turn 1: from 'elf' is not one of human"),
    ({"conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "y"}, {"from": "gpt", "value": "z"}]},
     "turn 2: role 'user' cannot follow user"),
    ({"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{x"}]},
     "turn 2: the function call is not valid JSON"),
    ({"system": "s", "conversations": [{"from": speaker, "value": "x"} for speaker in ("human", "human", "gpt")]},
     "turn 2: role 'user' cannot follow user"),
    ({"system": "s", "messages": [{"role": "system", "content": "t"}, ASKED, SAID]}, "turn 1: role 'system' cannot follow"),
    ({"system": "s", "prompt": [ASKED, {"role": "elf"}]}, "turn 2: role 'elf'"),
    ({"instruction": "", "output": "x"}, "instruction is empty"),
    ({"instruction": 3, "output": "x"}, "instruction is a number, expected text"),
    ({"instruction": "i", "output": None}, "output is missing"),
    ({"instruction": "i", "output": " "}, "output is empty"),
    ({"instruction": "i", "output": "o", "history": [["q"]]}, "history[1] is not a pair"),
    ({"instruction": "i", "output": "o", "system": 1}, "system is a number, expected text"),
    ({"prompt": "p", "completion": ""}, "completion is empty"),
    ({"prompt": 1, "completion": "c"}, "prompt is a number, expected text or turns"),
    ({"prompt": [ASKED, SAID], "completion": "c"}, "prompt + completion: turn 3: role 'assistant' cannot follow assistant"),
    ({"prompt": [ASKED, SAID], "completion": [ASKED, SAID]}, "completion starts with the user"),
    ({"prompt": "p", "completion": "c", "label": "good"}, "label is text, expected true or false"),
    ({"prompt": "p", "completion": "c", "label": None}, "no label"),
    ({"chosen": "a", "rejected": "b"}, "chosen is an answer, but the row has no prompt"),
    ({"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}, "chosen and rejected are the same"),
    ({"chosen": [ASKED, SAID], "rejected": [user("ho"), SAID]}, "turn 1: chosen and rejected answer different prompts"),
    ({"chosen": [ASKED, SAID], "rejected": [ASKED]}, "rejected: the last turn is user's"),
    ({"chosen": [ASKED, SAID], "rejected": [ASKED, NO], "prompt": "ho"}, "chosen does not start with the row's prompt"),
    ({"chosen": None, "rejected": "b", "prompt": "p"}, "chosen is missing"),
    ({"prompt": []}, "prompt is empty"),
    ({"prompt": "  "}, "prompt is empty"),
    ({"prompt": [SAID]}, "turn 1: role 'assistant' cannot come first"),
    ({"prompt": [{"role": "system", "content": "s"}]}, "no question"),
    ({"messages": [ASKED], "conversations": [ASKED]}, "both conversations and messages"),
    ({"query": "q", "tools": [TOOL], "answers": "[]"}, "answers is empty"),
    ({"query": "q", "tools": [TOOL], "answers": "[{]"}, "answers is not valid JSON"),
    ({"query": 1, "tools": [TOOL], "answers": [{"name": "add"}]}, "turn 1: content is a number"),
    ({"system": "s {", "chat": "USER: q\nASSISTANT: a"}, "the tools in system are not valid JSON"),
    ({"system": "s", "chat": "hello"}, "chat has no turn"),
    ({"system": "s", "chat": "USER: q\nASSISTANT: <functioncall> {x"}, "turn 2: the function call is not valid JSON"),
    ({"messages": [ASKED], "gt": "4"}, "gt is text, expected a list"),
    ({"messages": [ASKED], "gt": ["4"]}, "gt expects 1 calls, but the row has no tools"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_row_says_what_is_wrong(formats: list[FormatSpec], row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(formats, row)
    assert caught.value.reason.startswith(reason)


def test_what_a_prompt_says_is_not_learned(formats: list[FormatSpec], tokenizer: Tokenizer) -> None:
    row = parse(formats, {"prompt": [ASKED, SAID, user("again")], "completion": "bye"})
    (((ids, learn),),) = row.encode(tokenizer, 1000).units
    assert learned_texts(tokenizer, (ids, learn)) == [b"bye<|im_end|>"]
    assert tokenizer.decode(ids).count("hello") == 1


@pytest.mark.parametrize("page", ["usage.md", "usage_zh.md"])
def test_the_examples_of_the_documentation_are_rows_of_the_formats_named(page: str, formats: list[FormatSpec]) -> None:
    table = re.findall(r"^\| `([\w-]+)` \| (\w+) \| `(\{.*\})` \|$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _, _ in table} == {spec.name for spec in formats}
    for name, kind, example in table:
        row = json.loads(example)
        assert names(formats, row) == [name], example
        assert parse(formats, row).kind == kind
