"""The lines that a run prints to be pasted: they name the plugin files that the run was made with, and what is missing."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mm.core.run_folder import RunFolder
from mm.testing.pytest_plugin import CommandLine, CommandResult, Train

ALGORITHM = """
from mm.contracts import AlgorithmSpec, Needs, hookimpl

@hookimpl
def mm_algorithms():
    yield AlgorithmSpec(
        name="again", summary="Text.", target="mm.plugins.algorithms.next_token:NextToken", needs=Needs(data="text"),
    )
"""
TRACKER = """
import attrs
from mm.contracts import Tracker, TrackerSpec, hookimpl, option

@attrs.frozen(kw_only=True)
class Config:
    place: str = option("here", help="A place.")

@hookimpl
def mm_trackers():
    yield TrackerSpec(name="lines", summary="Prints.", target=f"{__name__}:Lines", config=Config)

class Lines(Tracker):
    def log(self, step, metrics):
        pass
"""


@pytest.fixture
def stopped(mm_train: Train, tmp_path: Path, mm_cli: CommandLine) -> Iterator[str]:
    """Makes run "a b" with an algorithm and a tracker of two files and stops it; the line that it printed."""
    for name, source in {"own algo": ALGORITHM, "lines": TRACKER}.items():
        (tmp_path / f"{name}.py").write_text(source)
    mm_train("pretrain", run="start", max_steps=1)
    words = ["--algo", "again", "--from", "start", "--data", tmp_path / "tiny_rows.jsonl", "--run", "a b", "--max-steps", 4]
    words += ["--global-batch-size", 2, "--max-length", 128, "--eval-ratio", 0, "--backend", "cpu", "--stop-after-steps", 1]
    told = mm_cli("train", *words, "--tracker", "lines", "--lines-place", "there", "-p", "own algo.py", "-p", "lines.py")
    yield printed("resume with: (mm .*)", told)
    for name in ("mm_plugin_own_algo", "mm_plugin_lines"):
        sys.modules.pop(name, None)


def printed(pattern: str, told: CommandResult) -> str:
    found = re.search(pattern, told.err)
    assert found, told.err
    return found[1]


def paste(mm_cli: CommandLine, line: str, *more: object, code: int = 0) -> CommandResult:
    program, *words = shlex.split(line)
    assert program == "mm"
    return mm_cli(*words, *more, code=code)


def test_the_line_that_resumes_a_run_has_its_plugin_files(
    stopped: str, tmp_path: Path, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = RunFolder(tmp_path / "runs/a b").manifest["command"]
    assert command[-4:] == ["-p", str(tmp_path / "own algo.py"), "-p", str(tmp_path / "lines.py")]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    again = printed("resume with: (mm .*)", paste(mm_cli, stopped, "--stop-after-steps", 2))
    use = printed("next: (mm .*), or ", paste(mm_cli, again))
    assert paste(mm_cli, use, "--max-new-tokens", 2).out


def test_all_that_is_missing_is_named_with_the_line_that_works(stopped: str, tmp_path: Path, mm_cli: CommandLine) -> None:
    told = mm_cli("train", "--resume", "--run", "a b", code=2)
    algorithm, tracker = tmp_path / "own algo.py", tmp_path / "lines.py"
    assert f"Run a b needs algorithm 'again', and {algorithm} is not loaded: -p '{algorithm}'; it needs " in told.err
    assert f"tracker 'lines', and {tracker} is not loaded: -p {tracker}. Then: mm train" in told.err
    for pattern in (r"Then: (mm .*?)\. A tracker", r"can be replaced: (mm .*?), or"):
        paste(mm_cli, printed(pattern, told), "--stop-after-steps", 1)
    assert "is not there: restore it" not in told.err
    algorithm.unlink()
    assert f"{algorithm} is not there: restore it, and load it: -p" in mm_cli("train", "--resume", "--run", "a b", code=2).err


@pytest.mark.parametrize("other", ["none", "tensorboard"])
def test_a_lost_tracker_can_be_replaced_for_good(other: str, stopped: str, tmp_path: Path, mm_cli: CommandLine) -> None:
    (tmp_path / "lines.py").unlink()
    words = ("train", "--resume", "--run", "a b", "-p", "own algo.py")
    assert "--tracker none" in mm_cli(*words, code=2).err
    told = mm_cli(*words, "--tracker", other, "--stop-after-steps", 2)
    assert "lines" not in (tmp_path / "runs/a b/run.toml").read_text()
    paste(mm_cli, printed("resume with: (mm .*)", told))
    run = RunFolder(tmp_path / "runs/a b")
    assert run.manifest["state"] == "finished"
    assert ("tracker.tensorboard" in run.manifest["parts"]) == (other == "tensorboard")
    assert "tracker.lines" not in run.manifest["parts"]


def test_a_source_and_a_backend_are_missing_parts_too(mm_train: Train, tmp_path: Path, mm_cli: CommandLine) -> None:
    run = mm_train("pretrain", run="a", stop_after_steps=1)
    parts = run.manifest["parts"]
    assert parts["source.files"] == "minimind-ascend"
    lost = {"source.mine": "acme-data", "backend.chip": "acme-chip"}
    run.update_manifest({"parts": {**parts, **lost}, "plugins": {**run.manifest["plugins"], "acme-data": "1", "acme-chip": "2"}})
    told = mm_cli("train", "--resume", "--run", "a", code=2).err
    assert "needs source 'mine', and acme-data 1 is not installed: pip install acme-data==1; it needs backend 'chip'" in told
    assert "backend 'chip'" not in mm_cli("train", "--resume", "--run", "a", "--backend", "cpu", code=2).err
    assert json.loads((run.path / "manifest.json").read_text())["plugin_options"] == list(mm_train.plugins().options)
