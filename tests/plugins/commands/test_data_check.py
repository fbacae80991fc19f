"""`mm data check` and `mm data stats`: what they find in files, and what they write."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, strategies as st
from run_files import write_rows

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.plugins.commands.data.calls import SchemaFault, call_faults
from mm.plugins.commands.data.command import data
from mm.plugins.commands.data.languages import LANGUAGES, language_of
from mm.plugins.sources.files.source import Files
from mm.runtime.data.reader import RowReader
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

ASKED, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
        "required": ["city"]}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


def chat(*turns: Any, **rest: Any) -> dict[str, Any]:
    return {"messages": [*turns], **rest}


def calling(name: str = "weather", **arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]}


GOOD = chat(ASKED, SAID)
LONG = chat(ASKED, {"role": "assistant", "content": "hello " * 700})
# line -> (row or text, problem, severity, the reason's beginning)
LINES: list[tuple[Any, str, str, str]] = [
    (GOOD, "", "", ""),
    (chat(ASKED, ASKED, SAID), "role order", "error", "turn 2: role 'user' cannot follow user"),
    (GOOD | {"id": 7}, "duplicate", "warning", "the same row"),
    ("{", "not JSON", "error", "not JSON (Expecting property name"),
    ([1], "wrong type", "error", "expected a JSON object, got a list"),
    (chat({"role": "user"}, SAID), "missing field", "error", "turn 1: no content"),
    (chat(ASKED, SAID | {"content": ""}), "empty", "error", "turn 2: the assistant's content is empty"),
    (chat(ASKED, SAID | {"content": 3}), "wrong type", "error", "turn 2: content is a number"),
    (chat({"role": "elf", "content": "x"}), "wrong value", "error", "turn 1: role 'elf' is not one of"),
    (chat(ASKED, {"role": "assistant", "tool_calls": "[{"}), "tool call", "error", "turn 2: tool_calls is not valid JSON"),
    (chat(ASKED, calling(), tools=[WEATHER]), "tool call", "error", "turn 2: weather: 'city' is a required property"),
    (chat(ASKED, calling(city="Rome", days="2"), tools=[WEATHER]), "tool call", "error", "turn 2: weather: '2' is not of type"),
    (chat(ASKED, calling(), tools=[WEATHER], system="Be short."), "tool call", "error", "turn 2: weather: 'city' is a required"),
    (chat(ASKED, calling("wether"), tools=[WEATHER]), "tool call", "error", "turn 2: calls 'wether', which is not among"),
    (chat(ASKED, calling(city="Oslo"), tools=[WEATHER]), "", "", ""),
    (LONG, "too long", "warning", "longer than 800 tokens: the rest is cut off and not learned"),
    (chat({"role": "user", "content": "hi " * 900}, SAID), "nothing learned", "warning", "nothing to learn within 800"),
    ({"text": "x"}, "missing field", "error", "messages (or conversations) is missing"),
]
BAD = {number for number, line in enumerate(LINES, 1) if line[2] == "error"}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save(folder)
    return folder


@pytest.fixture
def run(installed: PluginManager, tokenizer_folder: Path) -> Any:
    def call(*words: object) -> Result:
        options = ["--tokenizer", str(tokenizer_folder), "--max-length", "800"]
        return CliRunner().invoke(data, [*map(str, words), *options], obj=installed, catch_exceptions=False)

    return call


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [row for row, *_ in LINES])


def test_every_bad_row_is_named_and_counted(run: Any, rows: Path) -> None:
    result = run("check", rows, "--json")
    found = json.loads(result.stdout)
    expected = [(number, *rest) for number, (_, *rest) in enumerate(LINES, 1) if rest[0]]
    assert [(f["line"], f["problem"], f["severity"]) for f in found["findings"]] == [e[:3] for e in expected]
    assert all(f["reason"].startswith(e[3]) for f, e in zip(found["findings"], expected, strict=True))
    assert (found["rows"], found["bad"], found["good"]) == (len(LINES), len(BAD), len(LINES) - len(BAD))
    assert found["errors"]["tool call"] == {"rows": 5, "share": round(5 / len(LINES), 6)}
    assert found["files"] == [{"path": str(rows), "format": "chat", "rows": len(LINES), "unread_keys": {"id": 1}}]
    assert result.exit_code == 1


def test_the_report_for_people_has_the_same_lines(run: Any, rows: Path) -> None:
    lines = run("check", rows).output.splitlines()
    for number, (_, problem, severity, reason) in enumerate(LINES, 1):
        said = [line for line in lines if line.startswith(f"{rows}:{number}: ")]
        prefix = "warning: " if severity == "warning" else ""
        assert len(said) == bool(problem)
        assert all(line.startswith(f"{rows}:{number}: {prefix}{reason}") and line.endswith(f"[{problem}]") for line in said)
    assert f"{len(LINES)} rows: {len(LINES) - len(BAD)} good" in "\n".join(lines)


def test_warnings_alone_are_no_failure_and_not_all_listed(run: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [GOOD] * 30)
    result = run("check", path)
    assert result.exit_code == 0
    assert result.output.count("[duplicate]") == 10 and "19 warnings are not listed" in result.output
    assert run("check", path, "--warnings", 0).output.count("[duplicate]") == 29


def test_the_good_rows_are_written(run: Any, rows: Path, tmp_path: Path) -> None:
    useless = {n for n, line in enumerate(LINES, 1) if line[1] in ("duplicate", "nothing learned")}
    for out in (tmp_path / "fixed.jsonl", tmp_path / "deep" / "fixed.jsonl.gz"):
        assert run("check", rows, "--fix", out).exit_code == 1
        text = gzip.decompress(out.read_bytes()).decode() if out.suffix == ".gz" else out.read_text()
        kept = [row for n, (row, *_) in enumerate(LINES, 1) if n not in BAD | useless]
        assert [json.loads(line) for line in text.splitlines()] == kept
        assert run("check", out).exit_code == 0
        assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


def test_nothing_that_exists_is_overwritten(run: Any, rows: Path, tmp_path: Path) -> None:
    before = rows.read_bytes()
    with pytest.raises(UsageError, match="is one of the checked files"):
        run("check", rows, "--fix", rows)
    with pytest.raises(UsageError, match="is one of the checked files"):
        run("check", tmp_path, "--fix", tmp_path / ".." / tmp_path.name / "rows.jsonl")
    (tmp_path / "other.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        run("check", rows, "--fix", tmp_path / "other.jsonl")
    with pytest.raises(UsageError, match=r"written as \.jsonl"):
        run("check", rows, "--fix", tmp_path / "out.parquet")
    assert rows.read_bytes() == before and (tmp_path / "other.jsonl").read_text() == "mine"


def test_rows_of_two_formats_do_not_go_into_one_file(run: Any, tmp_path: Path) -> None:
    first, second = write_rows(tmp_path / "a.jsonl", [GOOD]), write_rows(tmp_path / "b.jsonl", [{"text": "x"}])
    with pytest.raises(UsageError, match="has text rows, but those before it are chat"):
        run("check", first, second, "--fix", tmp_path / "out.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_a_damaged_file_is_an_error_of_the_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, GOOD])[:-1])
    found = json.loads(run("check", tmp_path / "a.json", "--json").stdout)
    assert (found["rows"], found["bad"], found["errors"], found["file_errors"]) == (1, 0, {}, {"damaged file": 1})


def test_a_source_without_rows_fails_the_check_as_it_fails_a_training(run: Any, tmp_path: Path) -> None:
    for name, content in {"a.jsonl": "", "b.json": "[]", "c.csv": "text\n"}.items():
        (tmp_path / name).write_text(content)
        result = run("check", tmp_path / name)
        assert result.exit_code == 1 and f"{tmp_path / name}: it has no rows  [empty file]" in result.output
        assert "0 rows: 0 good, 0 with errors, 1 empty file" in result.output
    write_rows(tmp_path / "d.jsonl", [GOOD])
    assert run("check", tmp_path).exit_code == 0  # a training reads the folder too


def test_a_file_of_two_readings_wants_to_be_told_its_kind(run: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "x", **GOOD}])
    with pytest.raises(UsageError, match=r"chat \(chat rows\), text \(text rows\)"):
        run("check", path)
    assert run("check", path, "--kind", "text").exit_code == 0


def test_only_hashes_of_rows_are_kept(plugins: PluginManager, tmp_path: Path) -> None:
    from mm.plugins.commands.data.checking import Checker

    path = write_rows(tmp_path / "a.jsonl", [{"text": f"{n} " + "x" * 20_000} for n in range(20)])
    checker = Checker(tiny_tokenizer(), 100_000)
    reader = RowReader(plugins.specs(FormatSpec))
    assert [f for entry in reader.read(Files(None, str(path), "")) for f in checker.findings(entry)] == []
    assert {type(seen) for seen in checker._seen} == {bytes} and {len(seen) for seen in checker._seen} == {8}


# ---- calls


def faults(parameters: Any, **arguments: Any) -> list[str]:
    turns = (Message("user", "hi"), Message("assistant", "", None, (ToolCall("f", arguments),)))
    return list(call_faults(turns, [{"name": "f", "parameters": parameters}]))


@pytest.mark.parametrize(
    ("parameters", "arguments", "fault"),
    [
        (CITY, {"city": "Rome", "days": 2}, ""),
        (CITY, {"city": "Rome", "days": True}, "True is not of type 'integer'"),
        (CITY, {"city": "Paris"}, "'Paris' is not one of"),
        ({"type": "dict", "properties": {"n": {"type": "float"}}}, {"n": "x"}, "'x' is not of type 'number'"),
        ({"properties": {"type": {"type": "str"}}}, {"type": 1}, "1 is not of type 'string'"),
        ({"additionalProperties": False, "properties": {}}, {"x": 1}, "Additional properties"),
        ({"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}, {"x": "1"}, "'1' is not of type"),
        # regular expressions of a stranger are not run: this one would take longer than the universe
        ({"properties": {"x": {"pattern": "^(a+)+$"}}}, {"x": "a" * 60 + "!"}, ""),
        ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {"a" * 60 + "!": 1}, ""),
        (None, {"x": 1}, ""),
        ({"city": {"type": "str", "description": "xlam has no properties"}}, {"city": "x"}, ""),
    ],
)
def test_arguments_are_held_against_the_schema(parameters: Any, arguments: dict[str, Any], fault: str) -> None:
    found = faults(parameters, **arguments)
    assert (found == []) == (not fault) and all(line.startswith(f"turn 2: f: {fault}") for line in found)


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"x": {"required": True}}},
        {"properties": {"x": {"type": "colour"}}},
        {"properties": {"x": {"$ref": "http://192.0.2.1/schema.json"}}},  # an address that leads nowhere
        {"properties": {"x": {"$ref": "#/properties/x"}}},
        {"minProperties": "a"},
    ],
)
def test_a_schema_that_cannot_be_used_is_said_to_be_so(parameters: Any) -> None:
    with pytest.raises(SchemaFault, match="the parameters of f"):
        faults(parameters, x=1)


# ---- languages and figures


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("春眠不觉晓", "zh"), ("Call me Ishmael (if you will).", "en"), ("用 Python 写一个函数", "zh"),
        ("これはペンです", "other"), ("Привет, мир", "other"), ("1 2 3", "other"), ("", "other"),
        ("for (i = 0; i < 3; i++) { x[i] = 1; }", "code"),
        ("<answer>4</answer>", "en"),
    ],
)  # fmt: skip
def test_languages_follow_the_written_rule(text: str, language: str) -> None:
    assert language_of(text) == language


@given(st.text())
def test_every_text_has_a_language(text: str) -> None:
    assert language_of(text) in LANGUAGES


def test_the_figures_are_those_of_the_rows(run: Any, tmp_path: Path, tokenizer_folder: Path) -> None:
    chinese = [{"role": "user", "content": "你好吗"}, {"role": "assistant", "content": "好" * 40}]
    rows = [GOOD, LONG, chat(ASKED, SAID, *chinese), {"x": 1}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    result = run("stats", path, "--json", "--png", tmp_path / "a.png")
    found = json.loads(result.stdout)
    tokenizer = Tokenizer.load(tokenizer_folder)
    encoded = [tokenizer.encode_chat(row["messages"]) for row in rows[:3]]
    lengths, learned = sorted(len(ids) for ids, _ in encoded), [sum(learn) for _, learn in encoded]
    assert (found["rows"], found["bad_rows"], found["formats"]) == (3, 1, {"chat": 3})
    assert (found["tokens"], found["learned_tokens"]) == (sum(lengths), sum(learned))
    quantiles = found["length_quantiles"]
    assert [quantiles[q] for q in ("0.0", "0.5", "1.0")] == lengths
    assert found["roles"]["assistant"] == {"turns": 4, "characters": 2 * len("hello") + 4200 + 40}
    assert found["languages"] == {"zh": 1, "en": 2, "code": 0, "other": 0}
    limit, long = found["at_max_length"], sum(encoded[1][1][800:])
    assert lengths[-1] > 800 > lengths[-2]
    assert (limit["rows_longer"], limit["rows_dropped"], limit["learned_tokens_lost"]) == (1, 0, long)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_says_the_same(run: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "one two three"}] * 4)
    lines = [line.split() for line in run("stats", path).output.splitlines()]
    assert ["rows", "4", "format", "text"] in lines and ["language", "en", "4", "100.0%", "of", "the", "rows"] in lines


def test_a_file_without_a_row_has_no_figures(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no row that can be used"):
        run("stats", write_rows(tmp_path / "a.jsonl", ["{"]))
