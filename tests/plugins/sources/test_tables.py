"""Plain text as documents, and tables with named columns."""

from __future__ import annotations

import codecs
import csv
import datetime
import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pyarrow import parquet

from mm.core.errors import DataError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.plugins.sources.files import decode, documents, tables
from mm.plugins.sources.files.source import Files
from mm.plugins.sources.files.tables import read_table
from mm.runtime.data.reader import RowReader

CONVERT = "if the file has another encoding, convert it, for example with iconv"


def entries(path: Path) -> list[tuple[int, Any]]:
    """(line, row or reason) of everything."""
    return [(at.line, f.reason if isinstance(f, DataError) else f) for at, f in Files(None, str(path), "").entries()]


# ---- documents


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("第一段。\n\nTwo\r\nthree".encode(), {"text": "第一段。\n\nTwo\nthree"}),
        (codecs.BOM_UTF8 + b"a", {"text": "a"}),
        (b"", {"text": ""}),
        ("第一段".encode("gb18030"), f"not UTF-8 (invalid start byte at byte 0): {CONVERT} -f GB18030 -t UTF-8"),
        ("abc".encode("utf-16-le"), f"not UTF-8: {CONVERT} -f UTF-16 -t UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT", "a.txt.gz", "a.md.GZ"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str, content: bytes, found: Any) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    ((line, row),) = entries(tmp_path / name)
    assert line == 1 and (row == found or (isinstance(found, str) and row.startswith(found)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv.gz"])
@pytest.mark.parametrize("header", ["text", "文本"])
def test_text_in_the_encoding_of_chinese_tables_is_told_how_to_convert_it(tmp_path: Path, name: str, header: str) -> None:
    text = {"a.jsonl": f'{{"{header}": "你好"}}', "a.json": f'[{{"{header}": "你好"}}]'}.get(name, f"{header}\n你好\n")
    content = text.encode("gb18030")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    ((_, reason),) = entries(tmp_path / name)
    assert "not UTF-8 (" in reason and "iconv -f GB18030 -t UTF-8" in reason


def test_a_text_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decode, documents, tables):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 1 << 20)
    long = {"a.txt": b"x" * (1 << 21), "b.csv": b"text\n" + b"x" * (1 << 21), "c.csv": b'text\n"' + b"x\n" * (1 << 20)}
    for name, content in long.items():
        (tmp_path / name).write_bytes(content)
        ((_, reason),) = entries(tmp_path / name)
        assert reason.startswith("cannot be read") and ("more than 1 MiB" in reason or "field limit" in reason)


# ---- tables


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('text,id\n"a ""b""\nc",1\nd,\n\n,\n"",2\n',
         [(2, {"text": 'a "b"\nc', "id": "1"}), (4, {"text": "d"}), (7, {"id": "2"})]),
        ("\ufefftext , id\r\na,1\r\n", [(2, {"text": "a", "id": "1"})]),
        ("text\n", []),
        ("", []),
        ("text,id\na\nb,1,2\nc,1,,\n", [(2, "the row has 1 cell, but the header has 2"), (3, "the row has 3 cells"),
                                        (4, {"text": "c", "id": "1"})]),
        ('text\n"a"b\nc\n', [(2, "the quotes of the row are not those of a table"), (3, {"text": "c"})]),
        ('text\na\n"b\nc\n', [(2, {"text": "a"}), (2, "cannot be read after row 2: line 3: a quote is not closed")]),
        ("text,text\na,b\n", [(0, "cannot be read: the header names the column 'text' twice")]),
        ("text\n\udcff\nb\n", [(2, "not UTF-8"), (3, {"text": "b"})]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
def test_the_header_of_a_table_names_the_fields(tmp_path: Path, name: str, content: str, found: Any) -> None:
    data = (content.replace(",", "\t") if ".tsv" in name else content).encode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    rows = entries(tmp_path / name)
    assert [line for line, _ in rows] == [line for line, _ in found]
    for (_, row), (_, expected) in zip(rows, found, strict=True):
        assert row.startswith(expected) if isinstance(expected, str) else row == expected


CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": CELL, "id": CELL}), max_size=4), st.sampled_from([",", "\t"]))
def test_a_table_that_was_written_is_read(tmp_path: Path, rows: list[dict[str, str]], delimiter: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text", "id"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / ("a.csv" if delimiter == "," else "a.tsv")
    path.write_bytes(out.getvalue().encode())
    kept = [{key: value for key, value in row.items() if value} for row in rows]
    assert [row for _, row in entries(path)] == [row for row in kept if row]


@pytest.mark.parametrize(
    ("header", "cells", "kind"),
    [
        ("text,source", "hello,web", "text"), ("instruction,input,output", "add,,two", "chat"),
        ("prompt,completion", "q,a", "chat"),
        ("prompt,completion,label", "q,a,False", "unpaired"), ("prompt,chosen,rejected", "q,a,b", "preference"),
        ("prompt,answer", "q,4", "prompt"),
    ],
)  # fmt: skip
def test_the_formats_recognise_the_rows_of_a_table(
    tmp_path: Path, installed: PluginManager, header: str, cells: str, kind: str
) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{cells}\n")
    (entry,) = RowReader(installed.specs(FormatSpec)).read(Files(None, str(tmp_path / "a.csv"), ""))
    assert entry.row is not None and entry.row.kind == kind
    assert getattr(entry.row, "label", False) is False


# ---- times in Parquet


def test_times_of_every_resolution_become_text(tmp_path: Path) -> None:
    nanoseconds = pyarrow.array([1_600_000_000_123_456_789, None])
    columns = {
        "at": nanoseconds.cast(pyarrow.timestamp("ns")), "zone": nanoseconds.cast(pyarrow.timestamp("ns", tz="UTC")),
        "lost": nanoseconds.cast(pyarrow.timestamp("ns", tz="Nowhere/City")), "took": nanoseconds.cast(pyarrow.duration("ns")),
        "far": pyarrow.array([10**14, None]).cast(pyarrow.timestamp("s")),
        "day": pyarrow.array([datetime.date(2020, 1, 2), None]), "text": pyarrow.array(["a", "b"]),
    }  # fmt: skip
    columns["deep"] = pyarrow.ListArray.from_arrays([0, 1, 2], pyarrow.StructArray.from_arrays([columns["at"]], ["t"]))
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    (_, first), (_, second) = entries(tmp_path / "a.parquet")
    day = "2020-09-13 12:26:40.123456789"
    assert (first["at"], first["zone"], first["lost"], first["deep"]) == (day, f"{day}Z", day, [{"t": day}])
    assert (first["took"], first["day"], first["text"]) == ("1600000000123456789", "2020-01-02", "a")
    assert "out of range" in first["far"] and second == {"text": "b", "deep": [{"t": None}]}


def test_a_column_that_occurs_twice_is_an_error_of_the_file(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"]), tmp_path / "a.parquet")
    ((_, reason),) = entries(tmp_path / "a.parquet")
    assert "it has the column 'text' twice" in reason


def test_a_row_with_too_few_or_too_many_cells_is_counted_as_such() -> None:
    rows = [row for _, row in read_table("a.csv", io.BytesIO(b"a,b\n1\n1,2\n1,2,3\n"), ",")]
    assert [getattr(row, "problem", None) for row in rows] == ["columns", None, "columns"]
