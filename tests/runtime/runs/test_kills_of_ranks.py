"""A rank that is killed at any moment ends the command with its name, and the run goes on bit for bit. Run with:
pytest -m kills."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from run_files import lines, weights
from test_launch import finished, rank_of, start

from mm.core.workspace import Workspace, checkpoints

pytestmark = pytest.mark.kills
WORDS = ("--max-steps", 160, "--save-interval", 7, "--log-interval", 10, "--seed", 5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finished(start(folder, *WORDS, "--run", "a"))
    return folder


@pytest.mark.parametrize("seed", range(50))
def test_a_rank_is_killed_at_a_random_moment(seed: int, undisturbed: Path, tmp_path: Path) -> None:
    draws = random.Random(seed)
    rank, restarts = draws.randrange(2), draws.randrange(2)
    process = start(tmp_path, *WORDS, "--run", "a", "--max-restarts", restarts)
    run, whole = Workspace(tmp_path).run("a"), Workspace(undisturbed).run("a")
    while not (run.path / "manifest.json").exists() and process.poll() is None:  # the ranks have met
        time.sleep(0.01)
    time.sleep(draws.uniform(0, 4))
    try:
        os.kill(rank_of(process, rank), signal.SIGKILL)
    except (AssertionError, OSError):  # it was faster
        pytest.skip("the rank had ended")
    killed = time.monotonic()
    _, err = finished(process, 0 if restarts else 128 + signal.SIGKILL)
    assert re.search(rf"Rank {rank} was killed by SIGKILL (in step|before)", err)
    if not restarts:
        assert time.monotonic() - killed < 60
        if run.manifest.get("state") == "finished":  # killed when only its process was left to end
            pass
        elif checkpoints(run.checkpoints):
            finished(start(tmp_path, "--resume", "--run", "a"))
        else:
            return
    assert weights(run) == weights(whole) and lines(run) == lines(whole)
