"""Ranks that were given other settings or other data refuse to start, and name the first difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ranks import two_ranks
from run_files import write_rows
from sizes import sizes

from mm.core.errors import MMError
from mm.testing import tiny_run

ROWS = [{"text": f"a line about the number {n}"} for n in range(12)]


def rank_main(folder: str) -> None:
    """What each rank does."""
    rank = int(os.environ["RANK"])
    own = write_rows(Path(folder) / f"rows{rank}.jsonl", ROWS[rank:])
    common = Path(folder) / "rows.jsonl"
    given = {**sizes(layers=1), "max_steps": 1, "data": common}
    with pytest.raises(MMError, match=r"The ranks differ in settings: learning_rate is 0\.001 on rank 0 and 0\.002 on rank 1\."):
        tiny_run(Path(folder), "pretrain", rows=ROWS, run="a", **{**given, "learning_rate": 1e-3 * (rank + 1)})
    (Path(folder) / f"data{rank}").mkdir()
    os.chdir(Path(folder) / f"data{rank}")  # a file of one name, with other rows
    Path("mine.jsonl").symlink_to(own)
    with pytest.raises(MMError, match=r"The ranks differ in data: mine\.jsonl is \w+ on rank 0 and \w+ on rank 1\."):
        tiny_run(Path(folder), "pretrain", rows=ROWS, run="b", **{**given, "data": "mine.jsonl"})


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    with two_ranks("test_ranks_that_differ", "rank_main", tmp_path):
        pass
    assert not list((tmp_path / "runs").glob("[ab]"))
