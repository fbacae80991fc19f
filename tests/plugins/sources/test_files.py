"""The source of files: arrays, Parquet, folders, and bytes that are not what they should be."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pyarrow import parquet

from mm.core.errors import DataError, UsageError
from mm.plugins.sources.files import arrays, decode, mm_sources
from mm.plugins.sources.files.source import Files
from mm.runtime.text.strict_json import parse_json


def source(path: Path) -> Files:
    return Files(None, str(path), "")


def entries(path: Path) -> list[tuple[str, int, Any]]:
    """(file name, line, row or reason) of everything."""
    return [(Path(at.path).name, at.line, f.reason if isinstance(f, DataError) else f) for at, f in source(path).entries()]


# ---- JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('"\\[]{}, a天\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[]{},b', max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
ROWS = st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=5)


@given(JSON)
def test_strict_json_reads_what_json_writes(value: Any) -> None:
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[NaN]", "NaN"), ("-Infinity", "Infinity"), ("1e999", "too large"), ('"\\ud83d"', "surrogate"),
        ("[" * 65 + "]" * 65, "nested"),
        ("[" * 100_000, "nested"), ("9" * 5000, "limit"), ("[1,]", "at character"), ("", "at character 1"),
        ('"\t"', "control character at character 2$"), ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' occurs twice"),
    ],
)  # fmt: skip
def test_strict_json_refuses_what_others_cannot_read(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_a_line_that_was_cut_ends_where_the_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "cut\r\n{"a": 1}\n')
    (_, _, cut), (_, _, whole) = entries(path)
    assert "Unterminated string starting at character 7" in str(cut) and whole == {"a": 1}


def test_strict_json_takes_pairs_and_depth_within_reason() -> None:
    assert parse_json('"\\ud83d\\ude42"') == "🙂"
    assert parse_json("[" * 64 + "]" * 64) is not None


# ---- arrays


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ROWS, st.sampled_from([None, 1]), st.integers(1, 9))
def test_an_array_gives_its_elements_wherever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], indent: int | None, chunk: int
) -> None:
    monkeypatch.setattr(arrays, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert entries(path) == [("rows.json", number, row) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (' \ufeff[{"a": 1}]'.lstrip(), [{"a": 1}]),
        ("[]", []),
        ("[ \n ]", []),
        ('[{"a": 1},\n {"a": ], \n{"a": 3}]', [{"a": 1}, "not JSON (Expecting value at character 7)", {"a": 3}]),
        ('[{"a": 1}}', [{"a": 1}, "cannot be read after row 1: the array ends with a brace"]),
        ('[{"a": 1}, 7, {"a" 2}, {"a": 3}]', [{"a": 1}, "expected a JSON object, got a number", "not JSON", {"a": 3}]),
        ('[{"a": 1},, {"a": 3},]', [{"a": 1}, "not JSON (nothing", {"a": 3}, "not JSON (nothing"]),
        ('[{"a": 1}, {"a": 2', [{"a": 1}, "cannot be read after row 1: the array is not closed"]),
        ('[{"a": "1}, {', ["cannot be read: the array is not closed"]),
        ('[{"a": 1}] [', [{"a": 1}, "cannot be read after row 1: there is text after"]),
        ('{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ('\ufeff{\n"a": 1}', [{"a": 1}]),
        ('{"a": [\n1,\n{"b": "}\\""}]}\n\n{"a":\n2}{"a": 3}', [{"a": [1, {"b": '}"'}]}, {"a": 2}, {"a": 3}]),
        ('{\n"a": 1\n}\n{"a" 2}\n{"a": 3}', [{"a": 1}, "not JSON (Expecting ':'", {"a": 3}]),
        ('{\n"a": 1}, {"a": 2}', [{"a": 1}, "not JSON (Expecting value"]),
        ('{\n"a": 1}\n{\n"a": 2', [{"a": 1}, "cannot be read after row 1: an object is not closed"]),
        ('{\n"a": 1}}\n{"a": 2}', [{"a": 1}, "cannot be read after row 1: a bracket too many"]),
        ('{"a": "cut\n{"a": 1}', ["not JSON (Unterminated", {"a": 1}]),
    ],
)
def test_arrays_that_are_not_what_they_should_be(tmp_path: Path, text: str, found: list[Any]) -> None:
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("rows.json", "rows.json.gz"):
        rows = [row for _, _, row in entries(tmp_path / name)]
        assert len(rows) == len(found)
        assert all(row.startswith(want) if isinstance(want, str) else row == want for row, want in zip(rows, found, strict=True))


def test_an_array_is_never_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[" + ",".join(json.dumps({"text": "x" * 50_000}) for _ in range(1000)) + "]")
    tracemalloc.start()
    assert sum(1 for _ in source(path).rows()) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 5


# ---- bytes


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n', [(1, {"a": 1}), (3, {"a": 2})]),
        (b'\xef\xbb\xbf\n{"a": 1}', [(2, {"a": 1})]),
        (b'{"a": 1}\n\0\0\0\n', [(1, {"a": 1}), (2, "not JSON (3 NUL bytes: the file is incomplete)")]),
        (b'{"a": "\xe5"}\n{"a": 2}', [(1, "not UTF-8 (invalid continuation byte at byte 7)"), (2, {"a": 2})]),
        ('{"a": 1}'.encode("utf-16"), [(1, "not UTF-8 (invalid start byte at byte 0): if the file has another encoding, "
                                        "convert it, for example with iconv -f UTF-16 -t UTF-8")]),
        (b'{"a": "\\u0000"}', [(1, {"a": "\0"})]),
        (b"null\n", [(1, "expected a JSON object, got null")]),
        (b"", []),
    ],
)
def test_lines_of_any_bytes_are_read_or_refused_with_the_reason(tmp_path: Path, content: bytes, found: list[Any]) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert [(line, row) for _, line, row in entries(tmp_path / "a.jsonl")] == found


def test_a_line_without_end_is_refused_before_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm.plugins.sources.files import lines

    for module in (decode, lines, arrays):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "' + b"x" * (1 << 21))
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}, {"a": "' + b"x" * (1 << 22))
    for name, reason in (("a.jsonl", "a line of more than 1 MiB"), ("a.json", "a row of more than 1 MiB")):
        (_, _, first), (_, _, last) = entries(tmp_path / name)
        assert first == {"a": 1} and reason in last


# ---- Parquet


def write_parquet(path: Path, rows: list[dict[str, Any]], **rest: Any) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **rest)
    return path


def test_parquet_rows_are_those_that_were_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": f"{n}"}], "n": n} for n in range(1000)]
    path = write_parquet(tmp_path / "a.parquet", [*rows, {"n": 1000}], row_group_size=300)
    assert entries(path) == [("a.parquet", n, row) for n, row in enumerate([*rows, {"n": 1000}], 1)]


def test_large_rows_of_parquet_are_read_one_by_one(tmp_path: Path) -> None:
    rows = [{"text": f"{n}" + "x" * (1 << 21)} for n in range(24)]
    path = write_parquet(tmp_path / "a.parquet", rows, compression="none", use_dictionary=False)
    tracemalloc.start()
    assert [row["text"][:2] for _, row in source(path).rows()] == [row["text"][:2] for row in rows]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size


def test_parquet_values_that_json_does_not_have_become_text(tmp_path: Path) -> None:
    import datetime

    row = {"text": "x", "at": datetime.date(2020, 1, 2), "raw": b"12", "f": float("nan")}
    path = write_parquet(tmp_path / "a.parquet", [row])
    ((_, _, row),) = entries(path)
    assert row == {"text": "x", "at": "2020-01-02", "raw": "<2 bytes>", "f": None}
    json.dumps(row, allow_nan=False)


def test_one_bad_text_of_a_parquet_file_is_one_bad_row(tmp_path: Path) -> None:
    texts = pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    found = [row for _, _, row in entries(tmp_path / "a.parquet")]
    assert found == [{"text": "a"}, "not UTF-8 (invalid start byte at byte 0 of a text)", {"text": "c"}]


def test_a_damaged_parquet_file_and_a_missing_pyarrow_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"text": "x" * 99}] * 9)
    path.write_bytes(path.read_bytes()[:-20])
    ((_, line, reason),) = entries(path)
    assert line == 0 and reason.startswith("cannot be read: ")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install .*\[parquet\]"):
        entries(path)


# ---- names and progress


def test_what_stands_here_is_recognised_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path)
    (spec,) = mm_sources()
    assert spec.recognise("rows") and not spec.recognise("skills") and not spec.recognise("hub://rows")


def test_the_fraction_grows_to_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 50_000)
    write_parquet(tmp_path / "b.parquet", [{"text": "x"}] * 1000)
    found = source(tmp_path)
    seen = [found.fraction() for _ in found.entries()]
    assert seen == sorted(seen, key=lambda share: share or 0.0)
    assert 0 <= (seen[0] or 0.0) < 0.5 < (seen[-1] or 0.0) <= 1.0 and found.fraction() == 1.0
