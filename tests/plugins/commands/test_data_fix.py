"""`mm data check --fix`: the file is written whole or said not to be, also if nobody reads the output."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from processes import start_mm
from run_files import write_rows

from mm.testing.pytest_plugin import CommandLine

TEXTS = [{"text": f"number {n}"} for n in range(3000)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "a.jsonl", [row for text in TEXTS for row in (text, {"text": ""})])


@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_leaves_does_not_cost_the_file(tmp_path: Path, path: Path, both: bool) -> None:
    errors = subprocess.STDOUT if both else subprocess.PIPE
    process = start_mm(tmp_path, "data", "check", path, "--fix", tmp_path / "b.jsonl", stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    said = "" if both else process.stderr.read()  # type: ignore[union-attr]
    assert process.wait(timeout=120) == 1
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == TEXTS
    assert both or (f"the output was closed; the check continues, to write {tmp_path / 'b.jsonl'}" in said
                    and "3,000 rows written, 3,000 omitted" in said)  # fmt: skip


def test_without_a_file_to_write_the_check_ends(tmp_path: Path, path: Path) -> None:
    process = start_mm(tmp_path, "data", "check", path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(timeout=120), process.stderr.read()) == (141, "")


def test_a_file_that_is_not_written_is_said_not_to_be(mm_cli: CommandLine, tmp_path: Path, path: Path) -> None:
    other = write_rows(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "b"}])
    said = mm_cli("data", "check", path, other, "--fix", tmp_path / "b.jsonl", code=2).err
    assert f"--fix {tmp_path / 'b.jsonl'}: not written" in said and not (tmp_path / "b.jsonl").exists()
