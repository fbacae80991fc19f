"""`mm run` goes on with a training that a signal stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mm.core.workspace import Workspace

LINE = [
    sys.executable, "-m", "mm", "run", "tokenizer", "pretrain", "--vocab-size", "400", "--arch", "dense", "--preset", "tiny",
    "--data", "skills", "--epochs", "2", "--global-batch-size", "64", "--log-interval", "2", "--dense-hidden-size", "16",
    "--dense-num-hidden-layers", "1", "--dense-num-attention-heads", "2", "--dense-num-key-value-heads", "1",
]  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MM_WORKSPACE": str(folder)}
    return subprocess.Popen(LINE, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_an_interrupted_training_is_resumed(tmp_path: Path) -> None:
    process = start(tmp_path)
    for _ in range(600):
        if list(tmp_path.glob("runs/*/metrics.jsonl")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    (run,) = Workspace(tmp_path).runs()
    assert run.manifest["state"] == "interrupted"

    again = start(tmp_path)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert f"resuming {run.name} at step" in output
    (same,) = Workspace(tmp_path).runs()
    assert same.name == run.name and same.manifest["state"] == "finished" and same.manifest["step"] == same.manifest["steps"]
