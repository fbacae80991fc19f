"""torchrun, or a cluster's launcher in its place, starts the ranks: with one agent or with two, and after a failure again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import lines, weights
from test_launch import FOR_EVER, assert_saved_without_launcher, finished, line, rank_of, saved

from mm.core.workspace import Workspace

pytestmark = pytest.mark.ranks
WORDS = ("--max-steps", 120, "--save-interval", 10, "--log-interval", 30, "--dtype", "fp32")


def torchrun(workspace: Path, options: list[str], *words: object, **environ: str) -> subprocess.Popen[str]:
    """Start `mm train` under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--max-restarts=1", "-m", "mm", "--"]
    return subprocess.Popen(
        [*command, *map(str, line(workspace, *words))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MM_WORKSPACE": str(workspace), "OMP_NUM_THREADS": "1", **environ},
    )  # fmt: skip


def one_agent(workspace: Path, *words: object) -> subprocess.Popen[str]:
    """Two ranks of one agent."""
    return torchrun(workspace, ["--standalone", "--nproc-per-node=2"], *words)


def two_agents(workspace: Path, *words: object, **environ: str) -> list[subprocess.Popen[str]]:
    """Two agents, as of two machines that share the workspace, with one rank each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        place = f"--rdzv-endpoint=localhost:{probe.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=a", "--local-addr=localhost", place]
    return [torchrun(workspace, options, *words, **environ) for _ in range(2)]


def test_the_same_command_is_started_again_and_the_run_goes_on(tmp_path: Path) -> None:
    killed, whole = map(Workspace(tmp_path).run, ("killed", "whole"))
    process = one_agent(tmp_path, *WORDS, "--run", "killed")
    saved(killed, 20)
    os.kill(rank_of(process, 1), signal.SIGKILL)
    assert "resuming killed at step" in finished(process)[1]
    finished(one_agent(tmp_path, *WORDS, "--run", "whole"))
    assert weights(killed) == weights(whole) and lines(killed) == lines(whole)


@pytest.mark.parametrize("environ", [{}, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}])
def test_two_agents_start_it_again_together(environ: dict[str, str], tmp_path: Path) -> None:
    killed, whole = map(Workspace(tmp_path).run, ("killed", "whole"))
    processes = two_agents(tmp_path, *WORDS, "--run", "killed", **environ)
    saved(killed, 20)
    os.kill(next(rank for rank in map(_only_rank, processes) if rank), signal.SIGKILL)
    assert "resuming killed at step" in "".join(finished(process)[1] for process in processes)
    for process in two_agents(tmp_path, *WORDS, "--run", "whole", **environ):
        finished(process)
    assert weights(killed) == weights(whole) and lines(killed) == lines(whole)


def _only_rank(process: subprocess.Popen[str]) -> int:
    """The process of rank 1 if this agent has started it, else 0."""
    try:
        return rank_of(process, 1)
    except AssertionError:
        return 0


def test_ranks_whose_torchrun_is_gone_save_and_end(tmp_path: Path) -> None:
    assert_saved_without_launcher(one_agent(tmp_path, *FOR_EVER), Workspace(tmp_path).run("a"))
