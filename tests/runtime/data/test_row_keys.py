"""Keys of rows that nothing reads: counted and reported; and keys that hold something else than text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import write_rows

from mm.core.errors import DataError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.core.settings import TrainSettings
from mm.plugins.sources.files.source import Files
from mm.runtime.data.cache import build_or_open
from mm.runtime.data.corpus import open_corpus
from mm.runtime.data.reader import RowReader
from mm.runtime.data.row_keys import UnreadKeys
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

COUNTS = {"turn.mood": 4, "turn.toolCalls": 3, "id": 5}
TURNS = "nothing reads the keys 'mood' (4 rows), 'toolCalls' (3 rows) of its turns. Did you mean 'tool_calls' or 'tool_call'?"


def chat(number: int, **turn: Any) -> dict[str, Any]:
    return {"id": number, "messages": [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": "a", **turn}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [*(chat(n, toolCalls=[1], mood="ok") for n in range(3)), chat(3), chat(3, mood="bad")]
    return write_rows(tmp_path / "a.jsonl", rows)


def test_the_cache_counts_them_and_a_training_names_those_of_turns(path: Path, installed: PluginManager) -> None:
    said: list[str] = []
    for _ in range(2):  # the second time from the cache
        said.clear()
        settings = TrainSettings(max_length=64, data_workers=1)
        corpus = open_corpus(installed, [str(path)], "chat", tiny_tokenizer(), settings, path.parent, said.append)
        assert corpus.parts[0]["unread_keys"] == {str(path): COUNTS}
        (told,) = [line for line in said if "nothing reads" in line]
        assert told == f"data: {path}: {TURNS}"


def test_the_check_names_all_and_rows_that_differ_in_turns_are_no_duplicates(mm_cli: CommandLine, path: Path) -> None:
    out = path.parent / "fixed.jsonl"
    lines = mm_cli("data", "check", path, "--fix", out).out.splitlines()
    assert {f"{path}: {TURNS}", f"{path}: nothing reads the key 'id' (5 rows) of its rows"} <= set(lines)
    assert out.read_text() == path.read_text()
    found = json.loads(mm_cli("data", "check", path, "--json").out)
    assert found["files"][0]["unread_keys"] == COUNTS


@pytest.mark.parametrize("key", ["images", "audios", "videos", "image"])
@pytest.mark.parametrize("row", [
    {"text": "x"}, chat(0), {"prompt": "x"}, {"instruction": "x", "output": "y"},
    {"system": "s", "chat": "USER: q\nASSISTANT: a"}, {"prompt": "x", "chosen": "a", "rejected": "b"},
])  # fmt: skip
def test_more_than_text_is_an_error_of_the_row(installed: PluginManager, tmp_path: Path, key: str, row: Any) -> None:
    write_rows(tmp_path / "a.jsonl", [row | {key: []}, row | {key: ["a.png"]}, row | {key: None}])
    reader = RowReader(installed.specs(FormatSpec))
    first, second, third = reader.read(Files(None, str(tmp_path / "a.jsonl"), ""))
    assert first.error is None and third.error is None
    assert isinstance(second.error, DataError) and second.error.reason.startswith(f"{key}: only text can be learned")


def test_few_names_are_kept_of_many(tmp_path: Path, installed: PluginManager) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "x", f"{'k' * 50}{n}": 1, f"k{n}": 1} for n in range(300)])
    formats = [spec for spec in installed.specs(FormatSpec) if spec.name == "text"]
    store = build_or_open(Files(None, str(path), "text"), formats, tiny_tokenizer(), max_length=16, folder=tmp_path / "cache")
    counts = store.info.unread.of(str(path))
    assert len(counts) == 20 and counts["k" * 40] == 300
    assert isinstance(store.info.unread, UnreadKeys)
