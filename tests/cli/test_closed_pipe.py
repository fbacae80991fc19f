"""A reader that closes the pipe early (`| head -1`) stops no training, and ends a listing quietly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mm.core.workspace import Workspace


def unread(folder: Path, *words: str) -> int:
    """Exit code of a command whose output is closed before its first line."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MM_WORKSPACE": str(folder)}
    command = [sys.executable, "-m", "mm", *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(timeout=120)


def test_a_training_goes_on_and_a_listing_ends(tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": f"The number {i} comes after {i - 1}."}) + "\n" for i in range(40)))
    line = ["train", "--algo", "pretrain", "--arch", "dense", "--preset", "tiny", "--data", str(data), "--run", "a"]
    code = unread(tmp_path, *line, "--max-steps", "3", "--log-interval", "1", "--backend", "cpu")
    run = Workspace(tmp_path).existing("a")
    assert run.manifest["state"] == "finished" and (run.model / "config.json").exists(), code
    assert "step 3/3" in (run.path / "log.txt").read_text()
    assert unread(tmp_path, "runs", "show", "a") == 141
