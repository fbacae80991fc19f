"""SIGINT and SIGTERM end a training at any time with one line, the right exit code and the command that continues."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import start_mm
from run_files import weights
from sizes import sizes

import mm
from mm.core.errors import Signalled
from mm.core.workspace import Workspace
from mm.runtime.training.interrupts import handled, whole_imports
from mm.testing.pytest_plugin import Train

pytestmark = pytest.mark.mm_train("pretrain", **sizes(layers=1), max_steps=4, run="a", log_interval=1)
# stops for a minute at a place that the test names, and says so
WAITS = """
import os, sys, time
from mm.core.hooks import hookimpl
from mm.contracts import Callback
from mm.runtime.runs import lifecycle, session
from mm.runtime.models import storage

def wait():
    open("waiting", "w").close()
    time.sleep(60)

def before(module, name):
    plain = getattr(module, name)
    def waiting(*words, **named):
        wait()
        return plain(*words, **named)
    setattr(module, name, waiting)

place = {place!r}
if place == "import":
    wait()
elif place == "export":
    before(lifecycle, "save_model_folder")
elif place in ("open_corpus", "build_callbacks"):
    before(session, place)

class Slow(Callback):
    def on_start(self, run):
        if place == "start":
            wait()
    def on_step(self, run):
        if place == f"step {{run.step}}":
            wait()

@hookimpl
def mm_callbacks(run):
    return [Slow()]
"""
RESUME = "Resume with: mm train --resume --run a -p waits.py"
NUMBERS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.fixture
def stopped(mm_train: Train, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Starts or resumes run "a", sends signals once it waits at a place, and returns the exit code and what it said."""

    def stop(place: str, *numbers: int, resume: bool = False) -> tuple[int, str]:
        (tmp_path / "waits.py").write_text(WAITS.format(place=place))
        (tmp_path / "waiting").unlink(missing_ok=True)
        new = ["--algo", "pretrain", "--from", "start", "--data", "tiny_rows.jsonl", "--max-steps", 4, "--backend", "cpu"]
        new += ["--eval-ratio", 0, "--global-batch-size", 2, "--max-length", 128]
        words = ["-p", "waits.py", "train", *(["--resume"] if resume else new), "--run", "a"]
        process = start_mm(tmp_path, *words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 90
            while not (tmp_path / "waiting").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            for number in numbers:
                time.sleep(0.1)
                process.send_signal(number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        assert "Traceback" not in said, said
        return process.returncode, said.replace(f"{tmp_path}/", "")  # a line to paste works in every folder

    mm_train(run="start", max_steps=1)
    return stop


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("place", ["import", "open_corpus", "build_callbacks", "start"])
def test_before_the_first_step_nothing_stays_behind(
    place: str, number: int, stopped: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    numbers = (number,) if place != "start" else (number, signal.SIGINT)  # the first one waits for the step
    code, said = stopped(place, *numbers)
    expected, word = NUMBERS[numbers[-1]]
    assert code == expected
    assert re.match(rf"mm: {word}\. Start again with: mm -p waits\.py train --algo pretrain .*--run a$", said.splitlines()[-1])
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["start"]


@pytest.mark.parametrize("number", NUMBERS)
def test_in_the_final_export_the_run_stays_resumable(
    number: int, stopped: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, said = stopped("export", number, number)
    assert code == NUMBERS[number][0]
    assert said.splitlines()[-1] == f"mm: Stopped at once after step 4; the last checkpoint is that of step 4. {RESUME}"
    run = Workspace(tmp_path).existing("a")
    assert run.manifest["state"] == "interrupted" and not run.model.exists()
    assert not [path for path in run.path.glob(".*") if path.name != ".lock"]
    resumed = mm.train("pretrain", resume=True, run="a", workspace=tmp_path, quiet=True)
    assert resumed.manifest["state"] == "finished" and (resumed.model / "model.safetensors").exists()


@pytest.mark.parametrize("place", ["open_corpus", "build_callbacks"])
def test_while_a_resume_starts_the_run_stays_resumable(
    place: str, stopped: Callable[..., tuple[int, str]], mm_train: Train
) -> None:
    run = mm_train(from_="start", max_length=128, stop_after_steps=2)
    run.update_manifest({"state": "running"})  # as a kill would have left it
    code, said = stopped(place, signal.SIGTERM, resume=True)
    assert code == 143
    assert said.splitlines()[-1] == f"mm: Stopped before the first step. {RESUME}"
    assert run.manifest["state"] == "interrupted"


def test_the_first_interrupt_says_at_once_what_happens(stopped: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, said = stopped("step 3", signal.SIGINT, signal.SIGINT)
    assert code == 130
    *_, first, last = said.splitlines()
    again = r"; Ctrl-C again stops at once and loses 3 steps"
    assert re.fullmatch(rf"SIGINT: stopping after this step, then saving( \(about \d+ s\))?{again}", first)
    assert last.startswith("mm: Stopped at once, before the first checkpoint: nothing can be resumed. mm runs rm a removes ")
    assert "Start again with: mm -p waits.py train" in last
    assert Workspace(tmp_path).existing("a").manifest["state"] == "interrupted"


def test_a_second_interrupt_keeps_what_is_saved(
    stopped: Callable[..., tuple[int, str]], mm_train: Train, tmp_path: Path
) -> None:
    whole = mm_train(run="whole", from_="start", max_length=128)
    mm_train(from_="start", max_length=128, stop_after_steps=2)
    code, said = stopped("step 3", signal.SIGINT, signal.SIGINT, resume=True)
    assert code == 130
    *_, first, last = said.splitlines()
    assert first.endswith("Ctrl-C again stops at once and loses 1 step")
    assert last == f"mm: Stopped at once after step 3; the last checkpoint is that of step 2. {RESUME}"
    run = mm_train(resume=True, from_="start", max_length=128)
    assert run.manifest["state"] == "finished" and weights(run) == weights(whole)


def test_in_python_ctrl_c_waits_for_the_imports(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        finished = False
        with pytest.raises(KeyboardInterrupt), whole_imports():
            os.kill(os.getpid(), signal.SIGINT)
            finished = True
        assert finished and "as soon as PyTorch is imported" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with handled(), pytest.raises(Signalled), whole_imports():  # a command of mm ends at once
            os.kill(os.getpid(), signal.SIGINT)
            finished = False
        assert finished
    finally:
        signal.signal(signal.SIGINT, before)
