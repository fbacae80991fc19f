"""`mm run` goes on with a training that a signal stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

from processes import start_mm

import mm
from mm.core.workspace import Workspace

LINE = [
    "run", "tokenizer", "pretrain", "--vocab-size", "400", "--arch", "dense", "--preset", "tiny", "--data", "skills",
    "--epochs", "2", "--global-batch-size", "64", "--log-interval", "2", "--dense-hidden-size", "16",
    "--dense-num-hidden-layers", "1", "--dense-num-attention-heads", "2", "--dense-num-key-value-heads", "1",
]  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    return start_mm(folder, *LINE, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def interrupted(folder: Path) -> str:
    """What a training said that was stopped after its first line of metrics."""
    process = start(folder)
    for _ in range(600):
        if list(folder.glob("runs/*/metrics.jsonl")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    return output


def test_an_interrupted_training_is_resumed(tmp_path: Path) -> None:
    output = interrupted(tmp_path)
    (run,) = Workspace(tmp_path).runs()
    assert run.manifest["state"] == "interrupted"
    assert "Resume with: the same 'mm run' line" in output and "mm train --resume" not in output
    assert re.search(r"pretrain +interrupted +\d:\d\d", output), output

    again = start(tmp_path)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert f"resuming {run.name} at step" in output
    (same,) = Workspace(tmp_path).runs()
    assert same.name == run.name and same.manifest["state"] == "finished" and same.manifest["step"] == same.manifest["steps"]


def test_a_training_that_was_finished_by_hand_is_taken(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (run,) = Workspace(tmp_path).runs()
    mm.train("pretrain", resume=True, run=run.name, workspace=tmp_path, quiet=True)
    again = start(tmp_path)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert f"run {run.name} was finished meanwhile" in output and re.search(r"pretrain +done", output)
    assert [r.name for r in Workspace(tmp_path).runs()] == [run.name]
