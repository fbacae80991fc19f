"""The end of `mm run`: a summary, and lines that work when they are pasted into the same shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import write_rows

from mm.plugins.commands.run.next_lines import next_lines, program
from mm.testing import tiny_rows
from mm.testing.pytest_plugin import CommandLine


def make_script(folder: Path) -> Path:
    """A script `mm` as pip writes it."""
    folder.mkdir(parents=True)
    script = folder / "mm"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom mm.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("script", "path", "typed"),
    [
        ("here/.venv/bin", "other", ".venv/bin/mm"),
        ("here/.venv/bin", "here/.venv/bin", "mm"),
        # another installation that the shell would find first
        ("here/.venv/bin", "other:here/.venv/bin", ".venv/bin/mm"),
        ("here", "nowhere", "./mm"),
        ("my tools/bin", "nowhere", "'{root}/my tools/bin/mm'"),
    ],
)
def test_the_program_is_named_as_the_shell_finds_it(
    script: str, path: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    make_script(tmp_path / "other")
    started = tmp_path / script / "mm" if script == "here" else make_script(tmp_path / script)
    started.touch(mode=0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / part) for part in path.split(":")))
    monkeypatch.setattr(sys, "argv", [str(started), "run", "core"])
    assert program() == typed.format(root=tmp_path)


def test_python_minus_m_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/some/where/mm/__main__.py", "run"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert program() == ".venv/bin/python -m mm"
    (*_, line) = next_lines({"run:sft": tmp_path / "runs" / "my run" / "model"})
    assert line == ".venv/bin/python -m mm runs show 'my run'"
    assert next_lines({"tokenizer": tmp_path}) == []


def test_the_lines_work_when_they_are_pasted(mm_workspace: Path, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("text", "chat"):
        write_rows(mm_workspace / f"{kind}.jsonl", tiny_rows(kind) * 3)
    monkeypatch.chdir(mm_workspace)
    monkeypatch.setattr(sys, "argv", [str(make_script(mm_workspace / ".venv" / "bin")), "run"])
    options = (
        "--tokenizer-vocab-size 320 --tokenizer-data text.jsonl --pretrain-data text.jsonl --arch dense "
        "--preset tiny --dense-hidden-size 32 --dense-num-hidden-layers 1 --max-steps 1 --global-batch-size 2 --backend cpu"
    )
    said = mm_cli("run", "tokenizer", "pretrain", *options.split()).err
    lines = said.split("Type next:\n")[1].splitlines()
    assert all(line.startswith("  .venv/bin/mm ") for line in lines)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    talk = subprocess.run(
        lines[0], shell=True, env=environment, input="Hello\nAnd you?\n", text=True, capture_output=True, check=True
    ).stderr
    assert "/help lists the commands" in talk and talk.count(" tokens/s") == 2


def test_the_lines_load_the_plugin_files_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mm"])
    lines = next_lines({"run:sft": tmp_path / "runs/tuned/model"}, ["/my own.py", "no:lora"])
    assert lines and all(" -p '/my own.py' -p no:lora " in line for line in lines)
    assert lines[0].endswith("-p no:lora chat tuned")


def test_the_line_that_shows_a_broken_file_loads_it(tmp_path: Path, mm_cli: CommandLine) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    told = mm_cli("-p", broken, "plugins", "--kind", "tool").err
    line = f"mm plugins {broken} -p {broken}"
    assert f"; {line} shows the traceback" in told
    assert "ZeroDivisionError" in mm_cli(*line.split()[1:]).out
