"""Rows and files that were damaged at random: they are read or refused with a reason, and what is learned of those that
are read is what the assistant says in them.

The default suite runs some hundreds, `pytest -m slow` ten thousand.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from row_samples import SAMPLES, TOOL, learned_texts, said_by_the_assistant

from mm.contracts import Position
from mm.core.errors import DataError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.plugins.commands.data.checking import Checker
from mm.plugins.formats.preference.row import PreferenceRow
from mm.plugins.formats.prompt.row import PromptRow
from mm.plugins.sources.files.source import Files
from mm.runtime.data.reader import RowReader
from mm.runtime.text.rows import Encoded, Row, TextRow
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_rows, tiny_tokenizer

FEW, MANY = 80, 1200  # mutated rows of each of the nine formats
FEW_FILES, MANY_FILES = 250, 5000
HANG = 300  # seconds


@pytest.fixture(scope="module")
def formats() -> list[FormatSpec]:
    return PluginManager.discover(environ={}).specs(FormatSpec)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.alarm(HANG)
    yield
    signal.alarm(0)


# ---- what is learned


def assert_learned(tokenizer: Tokenizer, row: Row, encoded: Encoded) -> None:
    """Every learned token stands for something that the assistant says in an answer, in its order and from its start."""
    if isinstance(row, TextRow):
        parts = [learned_texts(tokenizer, sequence) for unit in encoded.units for sequence in unit]
        assert b"".join(run for part in parts for run in part) == row.text.encode() + b"<|im_end|>"
        return
    conversations: list[Any] = [(getattr(row, "messages", ()), getattr(row, "begin", 0))]
    if isinstance(row, PreferenceRow):
        conversations = [(row.chosen, row.begin), (row.rejected, row.begin)]
    sequences = [sequence for unit in encoded.units for sequence in unit]
    for (messages, begin), sequence in zip(conversations, sequences, strict=bool(sequences)):
        expected = [] if isinstance(row, PromptRow) else list(said_by_the_assistant(messages, begin))
        runs = learned_texts(tokenizer, sequence)
        whole = len(runs) if not encoded.truncated else len(runs) - 1
        assert runs[:whole] == expected[:whole] and len(runs) <= len(expected)
        assert encoded.truncated or len(runs) == len(expected)
        assert all(answer.startswith(run) for run, answer in zip(runs, expected, strict=False))


def check_row(formats: list[FormatSpec], tokenizer: Tokenizer, raw: Any, max_length: int) -> bool:
    """Whether the row can be read; any error but DataError and UsageError comes through."""
    position = Position(path="rows", line=1)
    read = False
    for kind in ("", *{spec.row for spec in formats}):
        try:
            row = RowReader(formats, kind).parse(position, raw)
            encoded = row.encode(tokenizer, max_length)
        except (DataError, UsageError) as error:
            assert str(error)
            continue
        read = True
        assert_learned(tokenizer, row, encoded)
    return read


# ---- rows

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", " ", "user", "assistant", "tool", "gpt", "system", "x", "[]", "{}", '[{"name": "add"}]', "{"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "name"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
KEYS = ["role", "content", "from", "value", "messages", "conversations", "text", "prompt", "completion", "label", "chosen",
        "rejected", "instruction", "output", "history", "system", "tools", "tool_calls", "gt", "reasoning_content", "functions",
        "function_call", "arguments", "name", "input"]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a row."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in pairs for found in [(value, key), *places(inner)]]


@st.composite
def mutated(draw: Any, samples: Any) -> Any:
    """A row of a format, changed in at most three places."""
    row = copy.deepcopy(draw(samples)[0])
    for _ in range(draw(st.integers(0, 3))):
        found = places(row)
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        how = draw(st.sampled_from(["remove", "replace", "json", "wrap", "rename", "add", "repeat"]))
        if how == "remove":
            del container[key]
        elif how == "replace":
            container[key] = draw(JUNK)
        elif how == "json":
            container[key] = json.dumps(container[key])
        elif how == "wrap":
            container[key] = [container[key]]
        elif how == "repeat" and isinstance(container, list):
            container.insert(draw(st.integers(0, len(container))), copy.deepcopy(container[key]))
        elif isinstance(container, dict):
            value = container.pop(key) if how == "rename" else draw(JUNK)
            container[draw(st.sampled_from(KEYS))] = value
    return row


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SAMPLES)
def test_mutated_rows_are_read_or_refused(name: str, examples: int, formats: list[FormatSpec], tokenizer: Tokenizer) -> None:
    read: list[bool] = []

    @settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(SAMPLES[name]), st.sampled_from([1 << 20, 40, 9]))
    @example({}, 9)
    def run(row: Any, max_length: int) -> None:
        read.append(check_row(formats, tokenizer, row, max_length))

    run()
    assert sum(read) > len(read) / 10  # one whose every row is refused tests nothing


@pytest.mark.parametrize("filler", [" ", "\n", "'", "}", "}\n", "<tool_call>{", "<tool_response>", "USER:", "{{", "\\"])
def test_no_text_takes_long_to_read(filler: str, formats: list[FormatSpec], tokenizer: Tokenizer) -> None:
    text, asked = "x" + filler * 10_000, {"from": "human", "value": "q"}
    rows: list[dict[str, Any]] = [
        {"conversations": [asked, {"from": who, "value": tag + text + end}]}
        for who, tag, end in (("gpt", "", "</tool_call>"), ("observation", "<tool_response>", ""), ("function_call", "{", ""))
    ]
    rows += [{"system": "s {" + text, "chat": "USER: q"}, {"system": "s", "chat": text}, {"text": text},
             {"system": "s", "chat": """USER: q\nASSISTANT: <functioncall> {"name": "f", "arguments": '""" + text},
             {"query": "q", "tools": text, "answers": text}]  # fmt: skip
    assert [check_row(formats, tokenizer, row, 1 << 20) for row in rows].count(True) >= 2


# ---- files

SEEDS: list[list[Any]] = [
    *(tiny_rows(kind) for kind in ("text", "chat", "preference", "unpaired", "prompt", "episode")),
    [{"conversations": [{"from": "human", "value": "天"}, {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
                        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "🙂"}], "tools": json.dumps([TOOL])}] * 2,
    [{"instruction": "i", "input": "", "output": "o", "history": [["a", "b"]]}] * 2,
    [{"prompt": "a", "completion": "\u0000b"}] * 2,
    [{"query": "q", "tools": [TOOL], "answers": '[{"name": "add", "arguments": {"a": 1}}]'}] * 2,
    [{"system": "SYSTEM: s -\n{\"name\": \"add\"}\n{\"name\": \"b\"}", "chat": "USER: q\n\n\nASSISTANT: <functioncall> "
      "{\"name\": \"add\", \"arguments\": '{}'} <|endoftext|>\nFUNCTION RESPONSE: 2\nASSISTANT: two"}] * 2,
]  # fmt: skip
BITS = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\\ud800", b"NaN",
        b"1e999", b"null", b"[" * 200, b'{"role": "user"}', b"\xe5\xa4", b"9" * 5000]  # fmt: skip


def damage(draw: random.Random, content: bytes) -> bytes:
    """The content with one to four places changed."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randint(0, len(found))
        end = min(len(found), start + draw.randint(0, draw.choice([1, 8, 200])))
        replacement = draw.choice([b"", bytes([draw.randrange(256)]), draw.choice(BITS), bytes(found[start:end]) * 2])
        if draw.random() < 0.05:
            del found[start:]
        else:
            found[start:end] = replacement
    return bytes(found)


def whole(draw: random.Random, suffix: str, folder: Path) -> bytes:
    rows = draw.choice(SEEDS)
    if suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        path = folder / "whole.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression=draw.choice(["none", "snappy"]))
        return path.read_bytes()
    if suffix.startswith(".jsonl"):
        return "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n" for row in rows).encode()
    return json.dumps(rows, indent=draw.choice([None, 1]), ensure_ascii=False).encode()


@pytest.mark.parametrize("files", [FEW_FILES, pytest.param(MANY_FILES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet"])
def test_damaged_files_are_read_or_refused(
    suffix: str, files: int, tmp_path: Path, formats: list[FormatSpec], tokenizer: Tokenizer
) -> None:
    path, read = tmp_path / f"a{suffix}", 0
    files = files // 5 if suffix == ".parquet" else files // 2
    for seed in range(files):
        draw = random.Random(f"{suffix}/{seed}")
        content = whole(draw, suffix, tmp_path)
        packed = suffix.endswith(".gz") and draw.random() < 0.5  # damage inside, or of the compression itself
        content = damage(draw, gzip.compress(content)) if packed else damage(draw, content)
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") and not packed else content)
        checker, reader = Checker(tokenizer, 200), RowReader(formats)
        try:
            for entry in reader.read(Files(None, str(path), "")):
                found = checker.findings(entry)
                if entry.row is not None and all(finding.warning for finding in found):
                    assert_learned(tokenizer, entry.row, entry.row.encode(tokenizer, 200))
                    read += 1
        except UsageError as error:
            assert str(error), seed
        except Exception as error:
            error.add_note(f"seed {seed}: {content[:300]!r}")
            raise
    # a fuzzer whose every file is refused at once tests nothing; a Parquet file seldom survives
    assert read > files / (50 if suffix == ".parquet" else 4)
