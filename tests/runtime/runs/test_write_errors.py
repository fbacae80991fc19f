"""A file that cannot be written gives one message from every command, and leaves nothing half written."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import start_mm
from run_files import weights, write_rows
from sizes import sizes

import mm
from mm.contracts import Callback, TrainingView
from mm.core.errors import StorageError
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.models.storage import verify
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine, Train

ROWS = [{"text": f"number {n} " * (1 + n % 5)} for n in range(11)]
SMALL = {**sizes(layers=1), "max_steps": 4, "global_batch_size": 3, "rows": ROWS, "run": "a"}
pytestmark = pytest.mark.mm_train("pretrain", **SMALL)


@contextlib.contextmanager
def full_disk(size: int = 500) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything(folder: Path) -> set[str]:
    """The files and folders below a folder, without caches and locks."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not name.startswith(".mm") and not name.endswith(".lock")}


@pytest.fixture
def run(mm_train: Train, mm_workspace: Path) -> RunFolder:
    """A finished run, with rows and texts beside it."""
    write_rows(mm_workspace / "rows.jsonl", ROWS * 40)
    return mm_train()


WRITERS = {
    "convert to llama": ["convert", "a", "out", "--to", "llama"],
    "convert native": ["convert", "a", "out", "--to", "native"],
    "data make": ["data", "make", "skills", "--out", "out"],
    "data check": ["data", "check", "rows.jsonl", "--fix", "out.jsonl"],
    "data check gz": ["data", "check", "rows.jsonl", "--fix", "out.jsonl.gz"],
    "tokenizer train": ["tokenizer", "train", "rows.jsonl", "--vocab-size", "300", "--out", "out"],
    "runs plot": ["runs", "plot", "a", "--out", "out.png"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_message(name: str, run: RunFolder, mm_workspace: Path, mm_cli: CommandLine) -> None:
    before = everything(mm_workspace)
    with full_disk(20 if name.startswith("data check") else 500):
        said = mm_cli(*WRITERS[name], code=1).err
    out = next(word for word in WRITERS[name] if word.startswith("out"))
    assert said.splitlines()[-1].endswith(f"{out}: File too large. Make room there, or name another place."), said
    assert "Traceback" not in said and everything(mm_workspace) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_one_message(
    name: str, run: RunFolder, mm_workspace: Path, mm_cli: CommandLine
) -> None:
    (mm_workspace / "file").write_text("mine")
    before = everything(mm_workspace)
    words = [f"file/{word}" if word.startswith("out") else word for word in WRITERS[name]]
    said = mm_cli(*words, code=1).err
    assert "A file is where a folder is needed, or the reverse: move it away, or name another place." in said.splitlines()[-1]
    assert "Traceback" not in said and everything(mm_workspace) == before


def test_a_tokenizer_is_replaced_as_a_whole(mm_workspace: Path, mm_cli: CommandLine) -> None:
    write_rows(mm_workspace / "rows.jsonl", ROWS)
    tiny_tokenizer().save(mm_workspace / "out")
    (mm_workspace / "out/notes.txt").write_text("mine")
    before = Tokenizer.load(mm_workspace / "out").fingerprint
    words = ["tokenizer", "train", "rows.jsonl", "--vocab-size", "270", "--out", "out", "--force"]
    with full_disk():
        assert "out: File too large." in mm_cli(*words, code=1).err
    assert Tokenizer.load(mm_workspace / "out").fingerprint == before
    mm_cli(*words)
    assert Tokenizer.load(mm_workspace / "out").vocab_size == 270
    assert (mm_workspace / "out/notes.txt").read_text() == "mine" and not list((mm_workspace / "out").glob(".*"))


def test_results_that_cannot_be_saved_are_printed(run: RunFolder, mm_workspace: Path, mm_cli: CommandLine) -> None:
    write_rows(mm_workspace / "held.jsonl", ROWS)
    run.evals.write_text("mine")
    shown = mm_cli("eval", "a", "--data", "held.jsonl", "--backend", "cpu", code=1)
    assert "perplexity" in shown.out and "evals: File exists. A file is where a folder is needed" in shown.err
    assert "Traceback" not in shown.err and run.evals.read_text() == "mine"


class Full(Callback):
    """From the event `when` on, no file can grow."""

    def __init__(self, when: str) -> None:
        self.when = when

    def on_start(self, run: TrainingView) -> None:
        self._limit("start")

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        self._limit("end")

    def _limit(self, event: str) -> None:
        if event == self.when:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_in_the_final_export_can_be_resumed(mm_train: Train, mm_watchers: list[Callback], mm_workspace: Path) -> None:
    mm_watchers.append(Full("end"))
    with full_disk(resource.RLIM_INFINITY), pytest.raises(StorageError) as caught:  # the manifest is larger, too
        mm_train()
    run = Workspace(mm_workspace).existing("a")
    assert f"{run.model}: File too large. Make room there, or name another place." in str(caught.value)
    assert str(caught.value).endswith("Then: mm train --resume --run a -p mm_watchers_of_the_test.")
    assert not run.model.exists() and not [p for p in run.path.glob(".*") if p.name != ".lock"]
    mm_watchers.clear()
    finished = mm_train(resume=True)
    assert finished.manifest["state"] == "finished"
    verify(finished.model)
    assert weights(finished) == weights(mm_train(run="whole"))


def test_the_advice_names_no_resume_that_would_refuse(mm_train: Train, mm_watchers: list[Callback], mm_workspace: Path) -> None:
    mm_watchers.append(Full("start"))
    with full_disk(resource.RLIM_INFINITY), pytest.raises(StorageError, match="There is no earlier checkpoint") as caught:
        mm_train(eval_ratio=0.0, log_interval=100, max_steps=1)
    assert "--resume" not in str(caught.value) and "start again, after mm runs rm a" in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full")
def test_an_output_that_is_full_is_one_message(run: RunFolder, mm_workspace: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start_mm(mm_workspace, "runs", "show", "a", stdout=full, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1
        assert said.startswith("mm: The output cannot be written: No space left on device.") and said.count("\n") == 1
        words = ["train", "--algo", "pretrain", "--from", "a", "--data", "tiny_rows.jsonl", "--run", "b", "--max-steps", "1"]
        process = start_mm(mm_workspace, *words, "--backend", "cpu", stdout=full, stderr=full, cwd=mm_workspace)
        assert process.wait(timeout=120) == 1
    assert Workspace(mm_workspace).existing("b").manifest["state"] == "finished"
    assert mm.plan("pretrain", from_="b", data="tiny_rows.jsonl", run="c", quiet=True)


def test_a_place_without_rights_is_one_message(run: RunFolder, mm_cli: CommandLine) -> None:
    try:
        os.mkdir("/sys/mm-out")
    except OSError as error:
        if not isinstance(error, PermissionError):
            pytest.skip(f"/sys gives another error: {error}")
    said = mm_cli("convert", "a", "/sys/mm-out", "--to", "llama", code=1).err.splitlines()[-1]
    assert said.startswith("mm: /sys/") and "See that it may be read and written, or name another place." in said
