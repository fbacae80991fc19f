"""Folders of data, and paths that are no files: what is read, what is left out, and what is said of it."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from mm.core.errors import DataError, UsageError
from mm.core.plugins import PluginManager
from mm.plugins.commands.data.command import data
from mm.plugins.sources.files.source import Files
from mm.runtime.data.corpus import open_source
from mm.testing.pytest_plugin import CommandLine


def source(path: Path | str, kind: str = "") -> Files:
    return Files(None, str(path), kind)


def entries(path: Path) -> list[tuple[str, Any]]:
    """(file name, row or reason) of everything."""
    return [(os.path.basename(at.path), f.reason if isinstance(f, DataError) else f) for at, f in source(path).entries()]


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = json.dumps({"text": name})
        content = f"[{row}]" if ".json" in path.suffixes[:1] else f"text\n{name}\n" if ".csv" in path.suffixes else row
        content = name if {".txt", ".md"} & set(path.suffixes) else content
        path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def test_a_folder_is_its_files_in_order_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "a/z.json", "a/y.jsonl.gz", ".hidden/h.jsonl", "README.md", "a/notes.txt", "a/n.md.gz", "t.csv")
    (tmp_path / "d.doc").touch()
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "c.parquet"}]), tmp_path / "c.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = source(tmp_path)
    names = ["a/n.md.gz", "a/notes.txt", "a/y.jsonl.gz", "a/z.json", "b.jsonl", "c.parquet", "t.csv"]
    assert [(at.path, row["text"]) for at, row in found.rows()] == [(str(tmp_path / name), name) for name in names]
    (note,) = found.notes()
    assert note.endswith("but not from a README and the like: README.md, d.doc, link/")
    assert found.fraction() == 1.0
    digest = found.digest()
    (tmp_path / "b.jsonl").write_text('{"text": "other"}')
    assert source(tmp_path).digest() != digest


def test_texts_beside_rows_of_another_kind_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "notes.txt")
    found = source(tmp_path, "chat")
    assert [Path(at.path).name for at, _ in found.rows()] == ["b.jsonl"]
    assert found.notes() == (f"{tmp_path}: skipped, as plain text has no chat rows: notes.txt",)
    (tmp_path / "b.jsonl").unlink()
    assert [row for _, row in source(tmp_path, "chat").rows()] == [{"text": "notes.txt"}]  # whose format then refuses it


def test_what_follows_a_damaged_file_of_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-9])
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    found = entries(tmp_path)
    assert found[-1] == ("b.jsonl", {"text": "b"})
    assert [row for name, row in found if name == "a.jsonl.gz"][-1].startswith("cannot be read after row")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read after row"):
        list(source(tmp_path).rows())


def test_a_folder_without_rows_is_a_usage_error(tmp_path: Path) -> None:
    write(tmp_path, "a.doc", "LICENSE.txt")
    with pytest.raises(UsageError, match=r"is a folder without \.jsonl"):
        list(source(tmp_path).rows())


STRANGE = {
    "a-pipe.jsonl": "is a pipe and not a file", "b-gone.jsonl": "is a link to a file that does not exist",
    "c-self.json": "cannot be read (Too many levels of symbolic links)", "d-folder.csv": None,
}  # fmt: skip


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "a-pipe.jsonl")
    (tmp_path / "b-gone.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "c-self.json").symlink_to("c-self.json")
    (tmp_path / "d-folder.csv").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    write(tmp_path, "e.jsonl")
    return tmp_path


def test_what_is_no_file_is_an_error_of_it_and_stops_nothing_else(strange: Path, installed: PluginManager) -> None:
    *faults, (last, row) = entries(strange)
    assert [name for name, _ in faults] == [name for name, reason in STRANGE.items() if reason]
    assert all(reason.startswith(STRANGE[name]) for name, reason in faults) and (last, row) == ("e.jsonl", {"text": "e.jsonl"})
    with pytest.raises(DataError, match=r"a-pipe\.jsonl: is a pipe"):
        source(strange).digest()
    checked = CliRunner().invoke(data, ["check", str(strange)], obj=installed)
    assert checked.exit_code == 1 and "1 row: 1 good (100.00%), 0 with errors, 3 damaged files" in checked.output
    assert f"{strange / 'b-gone.jsonl'}: is a link to a file that does not exist  [damaged file]" in checked.output


@pytest.mark.parametrize("name", [name for name, reason in STRANGE.items() if reason])
def test_what_is_no_file_is_refused_by_its_name(strange: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} {STRANGE[name]}".replace("(", r"\(").replace(")", r"\)")):
        list(source(strange / name).rows())


def test_names_that_are_no_text_are_read_and_shown_escaped(tmp_path: Path, mm_cli: CommandLine) -> None:
    for name, text in ((b"a\xff.txt", "one"), (b"b\nc.jsonl", '{"text": "two"}')):
        (tmp_path / os.fsdecode(name)).write_text(text)
    (tmp_path / os.fsdecode(b"\xfe.doc")).write_text("")
    found = source(tmp_path)
    shown = [f"{tmp_path}/a\\udcff.txt", f"{tmp_path}/b\\nc.jsonl"]
    assert [(at.path, row["text"]) for at, row in found.rows()] == list(zip(shown, ("one", "two"), strict=True))
    out = mm_cli("data", "check", tmp_path)
    assert f"{shown[0]}: 1 row," in out.out and "\\udcfe.doc" in out.err
    out = mm_cli("data", "check", tmp_path / os.fsdecode(b"a\xff.txt"), code=2)
    assert "a\\udcff.txt: the name is not UTF-8" in out.err


def test_an_empty_name_is_not_this_folder(installed: PluginManager, mm_cli: CommandLine, tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    for empty in ("", " ", ":0.5"):
        with pytest.raises(UsageError, match=r"--data is empty\. Give a file"):
            open_source(installed, empty, "text")
    line = ["train", "--algo", "pretrain", "--arch", "dense", "--preset", "tiny", "--dry-run"]
    assert "--data (command line) is empty: give a file" in mm_cli(*line, "--data", "", code=2).err
    assert "--data is empty" in mm_cli("data", "check", "", code=2).err


def test_a_missing_file_is_said_to_be_missing_where(tmp_path: Path, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "here/rows.jsonl", "rows.jsonl", "here/two.jsonl")
    monkeypatch.chdir(tmp_path / "here")
    said = mm_cli("data", "check", "row.jsonl", code=2).err
    place = f"It was looked for in the current folder, {tmp_path / 'here'}."
    assert f"row.jsonl does not exist. {place} Did you mean 'rows.jsonl'" in said
    (tmp_path / "here" / "rows.jsonl").unlink()
    assert f"The workspace has it: {tmp_path / 'rows.jsonl'}." in mm_cli("data", "check", "rows.jsonl", code=2).err
    for name in ("x" * 300 + ".jsonl", "a/" * 3000 + "b.jsonl", "~nobody-of-that-name/a.jsonl", "a\x00.jsonl"):
        with pytest.raises(UsageError):
            list(source(name).rows())
