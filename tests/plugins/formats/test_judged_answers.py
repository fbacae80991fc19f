"""Answers that a row calls good or bad: beside a label or another answer, a conversation is not simply learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from row_samples import assistant, user
from run_files import write_rows

from mm.contracts import Position
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.plugins.formats.preference.row import PreferenceRow
from mm.runtime.data.reader import RowReader
from mm.runtime.text.messages import Message
from mm.testing.pytest_plugin import CommandLine

AT = Position(path="f.jsonl", line=1)
ASKED, SAID = user("q"), assistant("a")
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def parse(plugins: PluginManager, row: dict[str, Any], kind: str = "") -> Any:
    return RowReader(plugins.specs(FormatSpec), kind).parse(AT, row)


@pytest.mark.parametrize(("value", "good"), [(True, True), (False, False), (1, True), (0, False), ("false", False), ("1", True)])
@pytest.mark.parametrize("answer", [
    {"messages": [ASKED, SAID]}, {"conversations": SHAREGPT}, {"instruction": "q", "output": "a"},
    {"prompt": "q", "completion": "a"},
])  # fmt: skip
@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_a_label_makes_a_row_unpaired(installed: PluginManager, answer: Any, key: str, value: Any, good: bool) -> None:
    row = parse(installed, {**answer, key: value, "label" if key == "kto_tag" else "kto_tag": None})
    assert (row.kind, row.begin, row.label) == ("unpaired", 1, good)
    assert row.messages == (Message("user", "q"), Message("assistant", "a"))
    assert parse(installed, {**answer, key: value}, "unpaired") == row
    with pytest.raises(UsageError, match=r"holds unpaired rows \(format unpaired\), but chat rows are needed"):
        parse(installed, {**answer, key: value}, "chat")


@pytest.mark.parametrize("row", [
    {"messages": [ASKED, SAID], "rejected_response": "b"}, {"conversations": SHAREGPT, "rejected_response": "b"},
    {"messages": [ASKED, SAID], "rejected_response": assistant("b"), "chosen": None},
    {"messages": [ASKED, SAID], "rejected": "b"},
    {"messages": [ASKED, SAID], "rejected_messages": [ASKED, assistant("b")]},
])  # fmt: skip
def test_a_worse_answer_beside_a_conversation_makes_a_pair(installed: PluginManager, row: dict[str, Any]) -> None:
    asked = Message("user", "q")
    assert parse(installed, row) == PreferenceRow((asked, Message("assistant", "a")), (asked, Message("assistant", "b")), (), 1)
    assert parse(installed, row, "unpaired").rejected == (asked, Message("assistant", "b"))
    with pytest.raises(UsageError, match="holds preference rows"):
        parse(installed, row, "chat")


def test_a_topic_is_no_label_and_a_prompt_needs_none(installed: PluginManager) -> None:
    assert parse(installed, {"messages": [ASKED, SAID], "label": "sports"}).kind == "chat"
    assert parse(installed, {"messages": [ASKED, SAID], "label": 0}, "prompt").messages == (Message("user", "q"),)
    with pytest.raises(UsageError, match="kto_tag is text, expected true or false"):
        parse(installed, {"messages": [ASKED, SAID], "kto_tag": "perhaps"})


def test_what_is_marked_as_bad_is_refused_where_chats_are_needed(mm_cli: CommandLine, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"messages": [ASKED, SAID], "label": n % 2 == 0, "n": n} for n in range(6)])
    refused = mm_cli("data", "check", path, "--kind", "chat", code=2).err
    assert "the file holds unpaired rows (format unpaired), but chat rows are needed" in refused
    assert "format unpaired" in mm_cli("data", "check", path).out
