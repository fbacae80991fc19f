"""A run that holds out most of its rows says so."""

from __future__ import annotations

import re
from pathlib import Path

from run_files import write_rows

from mm.testing.pytest_plugin import CommandLine, Train


def test_a_share_that_leaves_few_rows_is_said(mm_cli: CommandLine, mm_train: Train, tmp_path: Path) -> None:
    mm_train("pretrain", run="start", max_steps=1)
    data = write_rows(tmp_path / "rows.jsonl", [{"text": f"number {n}"} for n in range(40)])
    words = ("--from", "start", "--data", data, "--max-steps", 1, "--backend", "cpu", "--eval-rows", 1)
    said = mm_cli("train", "--algo", "pretrain", *words, "--eval-ratio", 0.9).err
    assert re.search(r"^--eval-ratio 0\.9: only \d+ of 40 units are trained on$", said, re.MULTILINE)
