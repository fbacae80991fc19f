"""Saving beside the training: what is written is the step it was taken at, one at a time, and no failure is lost."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sizes import sizes

from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.errors import StorageError
from mm.core.workspace import Workspace
from mm.runtime.models.storage import verify
from mm.runtime.training import checkpoint, saver
from mm.testing.pytest_plugin import Train

SMALL = {**sizes(layers=1), "max_steps": 6, "log_interval": 1, "learning_rate": 1e-2, "run": "a"}
pytestmark = pytest.mark.mm_train("pretrain", **SMALL)


@pytest.fixture
def watcher(mm_watchers: list[Callback]) -> Watcher:
    mm_watchers.append(watcher := Watcher())
    return watcher


class Watcher(Callback):
    """What happened, in its order; `at(step)` is called after a step."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.at = lambda step: None

    def on_step(self, run: TrainingView) -> None:
        self.events.append(f"step {run.step}")
        self.at(run.step)

    def on_save(self, run: TrainingView, path: Path) -> None:
        verify(path)
        self.events.append(path.name)


def content(folder: Path) -> dict[str, str]:
    """The hash of each file, without those that hold the clock."""
    entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return {name: entry["sha256"] for name, entry in entries.items() if not name.startswith("state/")}


def slowly(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> list[threading.Thread]:
    """Make every write wait for the gate; answers the threads that wrote."""
    threads: list[threading.Thread] = []
    write = checkpoint.write

    def waiting(*arguments: Any) -> Path:
        threads.append(threading.current_thread())
        assert gate.wait(60)
        return write(*arguments)

    monkeypatch.setattr(saver, "write", waiting)
    return threads


def test_training_goes_on_while_a_step_is_written(watcher: Watcher, mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer stands still for two steps, and what it then writes is the step that it was given."""
    gate = threading.Event()
    threads = slowly(monkeypatch, gate)
    watcher.at = lambda step: gate.set() if step == 4 else None
    run = mm_train(save_interval=2, keep_checkpoints=9)
    assert watcher.events[:5] == ["step 1", "step 2", "step 3", "step 4", "step-00000002"]
    assert threading.main_thread() not in threads and len(threads) == 3
    monkeypatch.undo()
    watcher.at = lambda step: None
    plain = mm_train(run="plain", save_interval=2, keep_checkpoints=9, background_save=False)
    for step in (2, 4, 6):
        both = [content(r.checkpoints / f"step-{step:08d}") for r in (run, plain)]
        assert both[0] == both[1]


def test_a_state_taken_in_the_background_resumes_to_the_bit(
    mm_train: Train, tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    slowly(monkeypatch, gate)
    watcher.at = lambda step: gate.set() if step == 5 else None
    whole = mm_train(save_interval=3, keep_checkpoints=9)
    monkeypatch.undo()
    stopped = mm_train(run="b", stop_after_steps=4)
    # the run whose newest checkpoint is the one that was written two steps late
    (stopped.checkpoints / "step-00000004").rename(tmp_path / "away")
    (whole.checkpoints / "step-00000003").rename(stopped.checkpoints / "step-00000003")
    resumed = mm_train(run="b", resume=True)
    first, second = (load_file(r.model / "model.safetensors") for r in (whole, resumed))
    assert all(first[name].equal(second[name]) for name in first)


def test_at_most_one_save_is_under_way(watcher: Watcher, mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, write = 0, 0, checkpoint.write

    def counted(*arguments: Any) -> Path:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)  # longer than a step of this model
        running -= 1
        return write(*arguments)

    monkeypatch.setattr(saver, "write", counted)
    run = mm_train(save_interval=1, keep_checkpoints=9)
    assert most == 1
    assert [e for e in watcher.events if e.startswith("step-")] == [f"step-{n:08d}" for n in range(1, 7)]
    assert len(list(run.checkpoints.iterdir())) == 6


def test_a_full_disk_is_named_where_torch_complains_of_something_else() -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 2000:  # what is smaller still fits, and torch then writes the end of its file
                raise OSError(28, "No space left on device")
            return super().write(data)

    with pytest.raises(RuntimeError) as raised:
        torch.save(torch.zeros(1000), Full())
    assert "No space left on device" not in str(raised.value)
    assert "No space left on device" in checkpoint._reason(raised.value)


@pytest.mark.parametrize("background", [True, False])
def test_a_failed_save_ends_the_run_with_one_message(
    background: bool, mm_train: Train, tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = checkpoint.seal

    def full(folder: Path) -> None:
        if "00000004" in folder.name:
            raise OSError(28, "No space left on device", str(folder / "index.json"))
        seal(folder)

    monkeypatch.setattr(checkpoint, "seal", full)
    with pytest.raises(StorageError) as raised:
        mm_train(save_interval=2, background_save=background, max_steps=50)
    message = str(raised.value)
    assert message.startswith(f"Step 4 could not be saved in {tmp_path}/runs/a/checkpoints: ")
    assert "No space left on device" in message and "mm train --resume --run a" in message
    assert "The last complete checkpoint is step-00000002." in message
    run = Workspace(tmp_path).existing("a")
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000002"]
    assert (run.manifest["state"], run.manifest["error"]) == ("failed", message)
    # it is heard of at once or after a step that runs meanwhile, at the latest when the next save begins
    steps = [event for event in watcher.events if event.startswith("step ")]  # the save before may be told after them
    assert steps[-1] in (("step 4", "step 5", "step 6") if background else ("step 4",))


class Broken(Callback):
    def on_step(self, run: TrainingView) -> None:
        if run.step == 3:
            raise RuntimeError("a bug in a callback")


def test_an_error_lets_the_save_under_way_finish(
    mm_train: Train, mm_watchers: list[Callback], tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    slowly(monkeypatch, gate)
    watcher.at = lambda step: threading.Timer(0.2, gate.set).start() if step == 3 else None
    mm_watchers.append(Broken())
    with pytest.raises(RuntimeError, match="a bug in a callback"):
        mm_train(save_interval=2)
    verify(tmp_path / "runs/a/checkpoints/step-00000002")
    assert watcher.events[-1] == "step-00000002"


def test_the_oldest_go_and_never_the_newest(mm_train: Train) -> None:
    run = mm_train(save_interval=1, keep_checkpoints=2, stop_after_steps=4)
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step-00000003", "step-00000004"]
    (run.checkpoints / "step-00000004/config.json").write_text("{}")
    # step 4 is damaged: the run goes on from 3, and what it saves must not make way for the damaged one
    mm_train(resume=True, keep_checkpoints=1, stop_after_steps=4, save_interval=None)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000004"]
    verify(run.checkpoints / "step-00000004")


def test_what_a_killed_process_left_is_cleared(mm_train: Train) -> None:
    run = mm_train(stop_after_steps=3, save_interval=1)
    kept = sorted(p.name for p in run.checkpoints.iterdir())
    for name in (".step-00000004.tmp/state", ".step-00000002.old"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "half.bin").write_bytes(b"half")
    (run.path / f".manifest.json.{os.getpid() + 1}").write_text("{")
    # the newest was moved aside for one that never came
    (run.checkpoints / kept[-1]).rename(run.checkpoints / f".{kept[-1]}.old")
    mm_train(resume=True, stop_after_steps=3)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == kept
    assert run.manifest["step"] == 3
    assert not list(run.path.glob(".manifest*"))
