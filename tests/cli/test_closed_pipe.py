"""A reader that closes the pipe early (`| head -1`) stops no training, and ends a listing quietly."""

from __future__ import annotations

import subprocess
from pathlib import Path

from processes import start_mm
from run_files import write_rows

from mm.core.workspace import Workspace


def unread(folder: Path, *words: str) -> int:
    """Exit code of a command whose output is closed before its first line."""
    process = start_mm(folder, *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(timeout=120)


def test_a_training_goes_on_and_a_listing_ends(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "text.jsonl", [{"text": f"The number {i} comes after {i - 1}."} for i in range(40)])
    line = ["train", "--algo", "pretrain", "--arch", "dense", "--preset", "tiny", "--data", str(data), "--run", "a"]
    code = unread(tmp_path, *line, "--max-steps", "3", "--log-interval", "1", "--backend", "cpu")
    run = Workspace(tmp_path).existing("a")
    assert run.manifest["state"] == "finished" and (run.model / "config.json").exists(), code
    assert "step 3/3" in (run.path / "log.txt").read_text()
    assert unread(tmp_path, "runs", "show", "a") == 141
