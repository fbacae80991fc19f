"""The formats and the source that read rows, and what they say about a bad one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mm.contracts import Position
from mm.core.errors import DataError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.plugins.formats import chat, text
from mm.plugins.formats.chat.format import ChatFormat
from mm.plugins.formats.text.format import TextFormat
from mm.plugins.sources import files
from mm.plugins.sources.files.source import Files
from mm.runtime.data.reader import RowReader
from mm.runtime.text.conversation import parse_conversation
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.rows import ChatRow, TextRow
from mm.testing.pytest_plugin import CommandLine

FORMATS = [*text.mm_formats(), *chat.mm_formats()]
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
TOOL = {"name": "add", "parameters": {"type": "object"}}


def chat_row(*turns: Any, **rest: Any) -> dict[str, Any]:
    return {"messages": list(turns), **rest}


CALL = ToolCall("add", {"a": 1})
CALL_DICT = {"name": "add", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"role": "system", "content": "s", "functions": [TOOL]}]},
        {"conversations": [{"role": "system", "content": "s", "tools": json.dumps([TOOL])}]},
        {"messages": [{"role": "system", "content": "s"}], "tools": [TOOL]},
        {"messages": [{"role": "system", "content": "s"}], "tools": json.dumps([TOOL])},
    ],
)
@pytest.mark.parametrize(
    "calls",
    [
        [CALL_DICT],
        json.dumps([CALL_DICT]),
        [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        json.dumps([{"function": CALL_DICT}]),
    ],
)
def test_every_generation_gives_the_same_row(row: dict[str, Any], calls: Any) -> None:
    key = next(iter(row))
    turns = [
        *row[key],
        USER,
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": calls},
        {"role": "tool", "content": "2"},
        ANSWER,
    ]
    parsed = ChatFormat().parse({**row, key: turns})
    assert parsed.tools == (TOOL,)
    assert parsed.messages == (
        Message("system", "s"),
        Message("user", "hi"),
        Message("assistant", "", "r", (CALL,)),
        Message("tool", "2"),
        Message("assistant", "hello"),
    )


def test_content_parts_and_empty_fields_are_read() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    parsed = ChatFormat().parse(chat_row(parts, {**ANSWER, "tool_calls": "", "reasoning_content": ""}, tools=""))
    assert parsed.messages == (Message("user", "ab"), Message("assistant", "hello", ""))
    result = chat_row(USER, {"role": "assistant", "tool_calls": [CALL_DICT]}, {"role": "tool", "content": {"x": "天"}}, ANSWER)
    assert ChatFormat().parse(result).messages[2].content == '{"x": "天"}'


def test_a_prompt_may_end_with_a_placeholder() -> None:
    messages, _ = parse_conversation(chat_row(USER, {"role": "assistant", "content": ""}), complete=False)
    assert messages[-1] == Message("assistant", "")
    messages, _ = parse_conversation({}, turns=[USER], complete=False)
    assert messages == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": "x"}, "the conversation is text, expected a list"),
        ({"messages": []}, "the conversation is empty"),
        (chat_row("x"), "turn 1 is text, expected an object"),
        (chat_row({"content": "x"}), "turn 1: no role"),
        (chat_row({"role": "elf", "content": "x"}), "turn 1: role 'elf' is not one of"),
        (
            chat_row({"role": "developer", "content": "x"}),
            "turn 1: role 'developer' is not one of system, user, assistant, tool: rename it to system",
        ),
        (chat_row({"role": "user"}), "turn 1: no content"),
        (chat_row({"role": "user", "content": 3}), "turn 1: content is a number, expected text"),
        (chat_row(USER, {"role": "assistant", "content": ""}), "turn 2: the assistant's content is empty"),
        (chat_row({"role": "user", "content": ""}, ANSWER), "turn 1: the user's content is empty"),
        (chat_row(USER), "the last turn is user's, expected the assistant's"),
        (chat_row(ANSWER), "turn 1: role 'assistant' cannot come first"),
        (chat_row(USER, USER, ANSWER), "turn 2: role 'user' cannot follow user"),
        (chat_row(USER, ANSWER, {"role": "system", "content": "x"}), "turn 3: role 'system' cannot follow assistant"),
        (chat_row(USER, {"role": "tool", "content": "x"}, ANSWER), "turn 2: role 'tool' cannot follow user"),
        (chat_row(USER, {**ANSWER, "reasoning_content": 1}), "turn 2: reasoning_content is a number"),
        (chat_row({**USER, "tool_calls": [CALL_DICT]}, ANSWER), "turn 1: tool_calls on a turn of role 'user'"),
        (chat_row(USER, {**ANSWER, "tool_calls": "[{"}), "turn 2: tool_calls is not valid JSON"),
        (chat_row(USER, {**ANSWER, "tool_calls": {"name": "x"}}), "turn 2: tool_calls is an object, expected a list"),
        (chat_row(USER, {**ANSWER, "tool_calls": [{"arguments": {}}]}), "turn 2: tool_calls[0] has no function name"),
        (
            chat_row(USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{x"}]}),
            "turn 2: tool_calls[0].arguments is not valid JSON",
        ),
        (
            chat_row(USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "[1]"}]}),
            "turn 2: tool_calls[0].arguments is a list, expected an object",
        ),
        (chat_row(USER, ANSWER, tools="[{]"), "tools is not valid JSON"),
        (chat_row(USER, ANSWER, tools=[{"description": "x"}]), "tools[0] is not a function schema with a name"),
        (
            chat_row({"role": "system", "content": "s", "functions": ["f"]}, USER, ANSWER),
            "turn 1: functions[0] is not a function schema",
        ),
    ],
)
def test_a_bad_conversation_says_what_is_wrong(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        ChatFormat().parse(row)
    assert str(caught.value).startswith(reason)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["role", "content", "tool_calls", "reasoning_content", "tools", "functions", "name", "arguments"])
VALUES = JSON | st.sampled_from(["user", "assistant", "tool", "system", "[]", "{}"])


@given(st.lists(st.dictionaries(KEYS, VALUES) | JSON, max_size=4), JSON)
def test_no_row_whatever_gives_another_error(turns: list[Any], tools: Any) -> None:
    try:
        assert isinstance(ChatFormat().parse({"conversations": turns, "tools": tools}), ChatRow)
    except DataError as error:
        assert error.reason


@pytest.mark.parametrize(
    ("row", "reason"), [({"text": None}, "no text"), ({"text": 1}, "text is a number"), ({"text": " "}, "text is empty")]
)
def test_a_bad_text_says_what_is_wrong(row: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        TextFormat().parse(row)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"text": "x"}, ["text"]),
        ({"text": 3, "source": "x"}, ["text"]),
        ({"conversations": [USER, ANSWER]}, ["chat"]),
        ({"messages": []}, ["chat"]),
        ({"conversations": [{"from": "human", "value": "x"}]}, []),
        ({"chosen": [], "rejected": []}, []),
    ],
)
def test_formats_are_recognised(row: Mapping[str, Any], names: list[str]) -> None:
    assert [spec.name for spec in FORMATS if spec.recognise(row)] == names


AT = Position(path="f.jsonl", line=1)


def test_the_reader_explains_what_it_cannot_read() -> None:
    with pytest.raises(UsageError, match=r"f.jsonl:1: no format fits a row with the keys a, b. Rename .*: text \(text\)$"):
        RowReader(FORMATS, "text").parse(AT, {"b": 1, "a": 2})
    needed = r"f.jsonl:1: the file holds text rows \(format text\), but chat rows are needed, such as {.messages.*--algo that"
    with pytest.raises(UsageError, match=needed):
        RowReader(FORMATS, "chat").parse(AT, {"text": "x"})
    twin = FormatSpec(name="twin", summary="", target="a:b", row="text", recognise=lambda row: True)
    with pytest.raises(UsageError, match=r"fits several formats: text \(text rows\), twin \(text rows\)"):
        RowReader([*FORMATS, twin]).parse(AT, {"text": "x"})
    # a format of another kind does not stand in the way
    prompts = FormatSpec(name="prompts", summary="", target="a:b", row="prompt", recognise=lambda row: True)
    assert RowReader([*FORMATS, prompts], "text").parse(AT, {"text": "x"}) == TextRow("x")


def test_the_example_of_a_format_is_a_row_of_it_and_of_no_other(installed: PluginManager) -> None:
    specs = installed.specs(FormatSpec)
    for spec in specs:
        assert [other.name for other in specs if other.recognise(spec.example)] == [spec.name]
        assert spec.load()().parse(spec.example).kind == spec.row


def test_unknown_columns_are_told_every_format_on_one_whole_line(mm_cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("问题,回答\n你好,你好呀\n", encoding="utf-8")
    found = mm_cli("data", "check", tmp_path / "a.csv", code=1).out.splitlines()
    (line,) = [line for line in found if "no format fits" in line]
    assert line.endswith("[unknown format]") and "..." not in line
    assert all(f"({spec.name})" in line for spec in mm_cli.plugins().specs(FormatSpec))
    told = r"keys 回答, 问题\. Rename keys or columns to those of a format: instruction, output \(alpaca\); messages"
    with pytest.raises(DataError, match=told):
        RowReader(mm_cli.plugins().specs(FormatSpec), "chat").parse(AT, {"问题": "x", "回答": "y"})


def test_a_missing_key_is_named_with_the_one_that_looks_like_it() -> None:
    for row, reason in (
        ({"message": [USER, ANSWER]}, r"messages \(or conversations\) is missing, .*has 'message'. Did you mean 'messages'\?$"),
        ({"id": 3}, r"messages \(or conversations\) is missing, expected a list of turns$"),
    ):
        reader = RowReader(FORMATS)
        reader.parse(AT, chat_row(USER, ANSWER))
        with pytest.raises(DataError, match=reason):
            reader.parse(AT, row)


def test_each_file_has_its_own_format() -> None:
    reader = RowReader(FORMATS)
    assert reader.parse(AT, {"text": "x"}) == TextRow("x")
    assert isinstance(reader.parse(Position(path="g.jsonl", line=1), chat_row(USER, ANSWER)), ChatRow)
    with pytest.raises(DataError, match=r"^f\.jsonl:7: no text"):
        reader.parse(Position(path="f.jsonl", line=7), chat_row(USER, ANSWER))


def source(path: Path) -> Files:
    return Files(None, str(path), "text")


def test_files_are_read_with_positions(tmp_path: Path) -> None:
    content = '\ufeff{"text": "a"}\n\n{"text": "b\u2028c"}'.encode()
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    for path in (plain, packed):
        assert [(at.line, row["text"]) for at, row in source(path).rows()] == [(1, "a"), (3, "b\u2028c")]
    assert source(plain).digest() == source(packed).digest()
    plain.write_bytes(content + b" ")
    assert source(plain).digest() != source(packed).digest()


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"{", "not JSON"), (b"[1]", "expected a JSON object, got a list"), (b'{"text": "\xff"}', "not UTF-8")],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        list(source(path).rows())
    assert str(caught.value).startswith(f"{path}:2: {reason}")


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("")
    (tmp_path / "a.doc").write_text("")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-9])
    with pytest.raises(UsageError, match=r"does not exist\. Did you mean 'data\.jsonl'"):
        list(source(tmp_path / "dat.jsonl").rows())
    with pytest.raises(UsageError, match=r"\.jsonl.*\.parquet files"):
        list(source(tmp_path / "a.doc").rows())
    for read in (source(tmp_path / "cut.jsonl.gz").digest, lambda: list(source(tmp_path / "cut.jsonl.gz").rows())):
        with pytest.raises(DataError, match="cannot be read"):
            read()


@pytest.mark.parametrize(
    ("locator", "expected"),
    [("a.jsonl", True), ("./a", True), ("a.jsonl.gz", True), ("a.TXT", True), ("a.csv.gz", True), ("skills", False),
     ("hub://a/b", False), ("", False), ("x" * 300, False)],
)
def test_paths_are_recognised(locator: str, expected: bool) -> None:
    (spec,) = files.mm_sources()
    assert spec.recognise(locator) is expected


class Careless(TextFormat):
    def parse(self, row: Mapping[str, Any]) -> Any:
        return row["body"] if "body" in row else row["text"]["en"]


def test_a_format_that_fails_says_at_which_row_and_what_it_should_have_made() -> None:
    spec = FormatSpec(
        name="careless", summary="Careless.", target=f"{__name__}:Careless", row="text", recognise=lambda row: True
    )
    with pytest.raises(TypeError, match="format careless made a str of a row"):
        RowReader([spec]).parse(AT, {"body": "x"})
    with pytest.raises(TypeError) as error:
        RowReader([spec]).parse(AT, {"text": "x"})
    assert error.value.__notes__ == [f"while format careless read {AT.path}:{AT.line}"]
