"""What a machine does to a run: full disks, folders of someone else's, no memory, damage, two processes, an impatient
user. Each gives one message, and the last good checkpoint stands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import start_mm
from run_files import weights, write_rows
from sizes import sizes

import mm
from mm.core.errors import UsageError
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.models.storage import verify
from mm.testing import tiny_run
from mm.testing.pytest_plugin import Train

ROWS = [{"text": f"number {n} " * (1 + n % 5)} for n in range(11)]
SMALL = {
    **sizes(layers=1), "max_steps": 6, "global_batch_size": 3, "log_interval": 2, "learning_rate": 1e-2, "rows": ROWS, "run": "a",
}  # fmt: skip
pytestmark = pytest.mark.mm_train("pretrain", **SMALL)


def in_child(code: str, workspace: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own after a stopped run; it says `go(**options)` to resume as the command line does."""
    lines = [f"{k}={v!r}" for k, v in ({"resume": True, "run": "a", "workspace": str(workspace)} | options).items()]
    script = f"""
import os, resource, sys
import mm, mm.cli, mm.runtime.runs.session, mm.backends.cpu.attention  # a user without rights cannot import later
from mm.core.errors import MMError
def go(**more):
    try:
        mm.train("pretrain", **(dict({", ".join(lines)}) | more))
    except MMError as error:
        raise SystemExit(mm.cli._report(str(error), error.exit_code))
{code}
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


def hidden(folder: Path) -> list[str]:
    """What is half written: everything hidden but the lock and the state's own."""
    return [p.name for p in folder.rglob(".*") if p.name not in (".lock", ".metadata")]


# ---- damage


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    folder = tmp_path_factory.mktemp("damage")
    tiny_run(folder, "pretrain", **SMALL, stop_after_steps=4, save_interval=2)
    return folder, tiny_run(folder, "pretrain", **{**SMALL, "run": "whole"})


FILES = [
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "index.json",
    "state/.metadata", "state/__0_0.distcp",
]  # fmt: skip


@pytest.mark.parametrize("damage", [flipped, truncated, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_each_damage_of_each_file_is_reported_and_the_checkpoint_before_is_used(
    file: str, damage: Callable[[Path], None], two_checkpoints: tuple[Path, RunFolder], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    workspace, whole = two_checkpoints
    shutil.copytree(workspace / "runs/a", tmp_path / "runs/a")
    damage(tmp_path / "runs/a/checkpoints/step-00000004" / file)
    capsys.readouterr()
    run = mm.train("pretrain", resume=True, run="a", workspace=tmp_path)
    said = capsys.readouterr().err
    # a flipped index speaks of another file, which it then wrongly accuses
    named = r"\S+" if (file, damage) == ("index.json", flipped) else rf"\S*{re.escape(file)}"
    assert re.search(rf"checkpoint step-00000004 is not used: {named}(:| is (damaged|missing))", said)
    assert "resuming a at step 2 of 6" in said
    assert weights(run) == weights(whole)


def test_every_file_of_a_checkpoint_was_damaged(two_checkpoints: tuple[Path, RunFolder]) -> None:
    folder = two_checkpoints[0] / "runs/a/checkpoints/step-00000004"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(FILES)


# ---- what cannot be written


def test_a_full_disk_stops_the_run_which_goes_on_elsewhere(mm_train: Train, tmp_path: Path) -> None:
    mm_train(workspace=tmp_path / "full", stop_after_steps=2)
    # files may not grow beyond 20 kB: less than the model's weights, more than everything small
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    child = in_child(f"{limit}\ngo(save_interval=1)", tmp_path / "full")
    assert child.returncode == 1 and "Traceback" not in child.stderr, child.stderr
    (message,) = [line for line in child.stderr.splitlines() if line.startswith("mm: ")]
    assert "Step 3 could not be saved in" in message and "File too large" in message
    assert "The last complete checkpoint is step-00000002." in message and "mm train --resume --run a" in message
    stopped = Workspace(tmp_path / "full").existing("a")
    assert [p.name for p in stopped.checkpoints.iterdir()] == ["step-00000002"]
    assert hidden(stopped.path) == []
    verify(stopped.checkpoints / "step-00000002")
    assert stopped.manifest["state"] == "failed"

    shutil.copytree(stopped.path, tmp_path / "roomy/runs/a")
    moved = mm.train("pretrain", resume=True, run="a", workspace=tmp_path / "roomy", quiet=True)
    assert weights(moved) == weights(mm_train(run="whole"))


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_leaves_nothing(mm_train: Train, tmp_path: Path) -> None:
    mm_train(run="other", max_steps=1)  # the token cache is there
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))"
    options = {"from_": str(tmp_path / "runs/other/model"), "data": str(tmp_path / "tiny_rows.jsonl"), "max_length": 128}
    child = in_child(f"{limit}\ngo(resume=False, run='b', eval_ratio=0.0, backend='cpu')", tmp_path, **options)
    assert child.returncode == 1 and "Traceback" not in child.stderr, child.stderr
    assert "File too large. Make room there" in child.stderr
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["other"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.slow
def test_a_folder_that_may_not_be_written(open_folder: Path, mm_train: Train) -> None:
    run = mm_train(workspace=open_folder, stop_after_steps=2)
    # as an ordinary user: root may write everywhere
    drop = "os.seteuid(65534) if os.geteuid() == 0 else None"
    run.checkpoints.chmod(0o555)
    try:
        child = in_child(f"os.chmod({str(run.path)!r}, 0o777)\n{drop}\ngo()", open_folder)
        assert child.returncode == 1 and "Traceback" not in child.stderr, child.stderr
        assert "Permission denied" in child.stderr and str(open_folder) in child.stderr
    finally:
        run.checkpoints.chmod(0o755)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000002"]
    (open_folder / "runs").chmod(0o555)
    options = {"data": str(open_folder / "tiny_rows.jsonl"), "from_": str(run.model), "eval_ratio": 0.0, "backend": "cpu"}
    try:
        child = in_child(f"{drop}\ngo(resume=False, run='b', max_length=128)", open_folder, **options)
        assert child.returncode == 1 and "Permission denied. See that it may be read and written" in child.stderr, child.stderr
    finally:
        (open_folder / "runs").chmod(0o755)
    assert [p.name for p in (open_folder / "runs").iterdir()] == ["a"]
    moved = mm.train("pretrain", resume=True, run="a", workspace=open_folder, quiet=True)
    assert moved.manifest["state"] == "finished"


# ---- data that moved


def test_data_that_moved_is_named_once_more(mm_train: Train, tmp_path: Path) -> None:
    whole = mm_train(workspace=tmp_path / "whole")
    run = mm_train(stop_after_steps=2)
    (tmp_path / "tiny_rows.jsonl").rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(UsageError, match=r"tiny_rows\.jsonl does not exist"):
        mm.train("pretrain", resume=True, run="a", workspace=tmp_path, quiet=True)
    write_rows(tmp_path / "other.jsonl", ROWS[1:])
    with pytest.raises(UsageError, match=r"The data of run a has changed.*tiny_rows\.jsonl.*--data.*--from a"):
        mm.train("pretrain", resume=True, run="a", workspace=tmp_path, quiet=True, data=tmp_path / "other.jsonl")
    moved = {"resume": True, "run": "a", "workspace": tmp_path, "quiet": True}
    mm.train("pretrain", data=tmp_path / "elsewhere.jsonl", stop_after_steps=4, **moved)
    assert mm.train("pretrain", **moved).manifest["state"] == "finished"  # the new place is remembered
    assert weights(run) == weights(whole)


# ---- two processes


def test_a_run_is_trained_by_one_process_at_a_time(mm_train: Train) -> None:
    import fcntl

    run = mm_train(stop_after_steps=2)
    hold = f"import fcntl, time; f = open({str(run.path / '.lock')!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True)"
    holder = subprocess.Popen([sys.executable, "-c", hold + "; time.sleep(60)"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline()
        before = (run.path / "manifest.json").read_bytes()
        with pytest.raises(UsageError, match=rf"Run a is being trained by process {os.getpid()} on .*: wait for it or stop it"):
            mm_train(resume=True)
        assert (run.path / "manifest.json").read_bytes() == before
    finally:
        holder.kill()
        holder.wait()
    with (run.path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process holds nothing
    assert mm_train(resume=True).manifest["state"] == "finished"


SLOW = """
import time
from mm.contracts import Callback
from mm.core.hooks import hookimpl

class Slow(Callback):
    def on_step(self, run):
        if run.step == 3:
            time.sleep(60)

@hookimpl
def mm_callbacks(run):
    return [Slow()]
"""
SLOW_SAVE = """
import time
from mm.core.hooks import hookimpl
from mm.runtime.training import saver

write = saver.write
def slow(snapshot, *rest):
    if snapshot.step == 3:
        time.sleep(60)
    return write(snapshot, *rest)
saver.write = slow

@hookimpl
def mm_callbacks(run):
    return []
"""


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [SLOW, SLOW_SAVE])
def test_a_second_interrupt_stops_at_once(plugin: str, mm_train: Train, tmp_path: Path) -> None:
    """In the middle of a step, and while the last step is being saved."""
    mm_train(stop_after_steps=1)
    (tmp_path / "slow.py").write_text(plugin, encoding="utf-8")
    words = ["-p", tmp_path / "slow.py", "train", "--resume", "--run", "a", "--save-interval", "1"]
    process = start_mm(tmp_path, *words, stderr=subprocess.PIPE)
    try:
        checkpoint, deadline = tmp_path / "runs/a/checkpoints/step-00000002", time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130, said
    stopped, resume = r"mm: Stopped at once after step [34]; the last checkpoint is that of step 2\.", "mm train --resume --run a"
    assert re.fullmatch(rf"{stopped} Resume with: {resume} -p \S+", said.splitlines()[-1])
    run = Workspace(tmp_path).existing("a")
    assert run.manifest["state"] == "interrupted"
    assert sorted(p.name for p in run.checkpoints.glob("step-*"))[-1] == "step-00000002"
    resumed, whole = mm_train(resume=True), mm_train(run="whole")
    assert weights(resumed) == weights(whole)


# ---- memory

LIMITED = """
from mm.contracts import Callback
from mm.core.hooks import hookimpl

class Limit(Callback):
    def on_start(self, run):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 120 * 2**20, resource.RLIM_INFINITY))

@hookimpl
def mm_callbacks(run):
    return [Limit()]

from mm.testing import plugin_manager
sys.modules["limited"] = sys.modules["__main__"]
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from /proc")
def test_out_of_memory_says_who_holds_it_and_what_to_lower(mm_train: Train, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "long.jsonl", [{"text": f"{n} is a number. " * 160} for n in range(64)])
    mm_train(run="start", max_steps=1)
    options = {"data": str(data), "from_": "start", "global_batch_size": 2048, "max_length": 64, "micro_batch_tokens": 10**6}
    options |= {"dtype": "fp32", "eval_ratio": 0.0, "backend": "cpu", "max_steps": 2}
    go = "go(resume=False, run='big', plugins=plugin_manager('limited'))"
    child = in_child(LIMITED + go, tmp_path, **options)
    assert child.returncode == 1 and "Traceback" not in child.stderr, child.stderr
    (message,) = [line for line in child.stderr.splitlines() if line.startswith("mm: ")]
    number = r"[\d,]+ MiB"
    assert re.search(rf"Out of memory on cpu \(peak {number} of {number}\): .*allocate", message), message
    parts = rf"parameters {number}, gradients {number}, optimizer state {number}, activations and the rest {number}"
    assert re.search(rf"Memory in step 1: {parts}\. Lower --micro-batch-tokens \(1000000\) or --max-length \(64\)", message)
    assert "--dtype bf16" in message
    assert not (tmp_path / "runs" / "big").exists()  # nothing was saved, so the name is free again
