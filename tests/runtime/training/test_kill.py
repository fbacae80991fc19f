"""A run that is killed again and again, also while it saves, ends as the run that nothing happened to."""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import start_mm
from run_files import lines, weights
from sizes import sizes

from mm.core.errors import CheckpointError
from mm.core.workspace import RunFolder, Workspace, step_of
from mm.runtime.models.storage import verify
from mm.testing import tiny_run

KILLS = 24
STEPS = 400
ROWS = [{"text": f"number {n} " * (1 + n % 5)} for n in range(23)]
# large enough that writing takes a while, with steps that are short
SMALL = {**sizes(width=128), "max_steps": STEPS, "global_batch_size": 2, "log_interval": 5, "save_interval": 3}


def newest(run: RunFolder) -> int:
    """The step of the newest whole checkpoint."""
    steps = [0]
    for path in run.checkpoints.glob("step-*"):
        try:
            verify(path)
        except (CheckpointError, FileNotFoundError):  # pruned while this looked
            continue
        steps.append(step_of(path))
    return max(steps)


def at_a_moment(seconds: float) -> Callable[[RunFolder], bool]:
    """True some time after the run went on."""
    until: list[float] = []

    def now(run: RunFolder) -> bool:
        if not until and (run.path / "log.txt").stat().st_mtime > started:
            until.append(time.monotonic() + seconds)
        return bool(until) and time.monotonic() > until[0]

    started = time.time()
    return now


def while_saving(skip: int) -> Callable[[RunFolder], bool]:
    """True when a half-written checkpoint is seen that was not there at first, after `skip` others."""
    seen: set[tuple[str, int]] = set()
    first = True

    def now(run: RunFolder) -> bool:
        nonlocal first, skip
        for path in run.checkpoints.glob(".step-*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                seen.add((path.name, path.stat().st_ino))
        if first:  # what the kill before left
            first, skip = False, skip + len(seen)
        return len(seen) > skip

    return now


def killed(workspace: Path, when: Callable[[RunFolder], bool], background: bool) -> str:
    """Resume in a real process and kill it; answers what it printed."""
    words = ["train", "--resume", "--run", "a", "--background-save" if background else "--no-background-save"]
    run = Workspace(workspace).existing("a")
    with (workspace / "said.txt").open("w+") as said:
        process = start_mm(workspace, *words, stderr=said, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and not when(run) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait()
        said.seek(0)
        return said.read()


@pytest.mark.kills
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path, "pretrain", rows=ROWS, run="whole", **SMALL)
    run = tiny_run(tmp_path, "pretrain", rows=ROWS, run="a", **SMALL, stop_after_steps=1)
    draw, saving, last = random.Random(7), 0, 1
    for number in range(KILLS):
        when = while_saving(draw.randrange(4)) if number % 2 else at_a_moment(draw.uniform(0, 0.5))
        said = killed(tmp_path, when, background=number % 4 < 2)
        assert "Traceback" not in said, said
        found = re.search(r"resuming a at step (\d+) of", said)
        assert found and int(found[1]) == last, said  # nothing that was saved is lost
        saving += any(run.checkpoints.glob(".step-*.tmp"))
        standing = newest(run)
        assert standing >= last
        assert {step_of(p) for p in run.checkpoints.glob("step-*")} <= set(range(1, standing + 1))
        last = standing
        if run.manifest["state"] == "finished":
            break
    assert number >= 19 and saving >= 5, (number, saving)
    finished = tiny_run(tmp_path, "pretrain", rows=ROWS, run="a", **SMALL, resume=True)
    assert weights(finished) == weights(whole)
    assert lines(finished) == lines(whole)
    names = [p.name for folder in (run.path, run.checkpoints) for p in folder.iterdir()]
    assert not [name for name in names if name.startswith(".") and name != ".lock"]
