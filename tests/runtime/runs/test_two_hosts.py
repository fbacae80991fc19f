"""Two network namespaces as two machines: they train as one, survive a slow link and one that is down for a while, and say so if
one stays down. Needs root and iproute2. Run with: pytest -m machines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch
from namespaces import MISSING, Namespaces, cable, ip, two_namespaces
from run_files import lines, weights, write_rows
from safetensors.torch import load_file
from sizes import sizes
from slow_link import slow_link
from test_launch import ROWS, rank_of, saved

from mm.core.workspace import RunFolder, Workspace

pytestmark = [pytest.mark.machines, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
PORT = 29500
Host = subprocess.Popen[str]


@attrs.frozen
class Hosts:
    """Two namespaces and the link between them; a workspace that both see."""

    namespaces: Namespaces
    workspace: Path

    def start(self, run: str, *words: object, endpoint: str = "", **environ: str) -> list[Host]:
        """The same training on each host, one rank each."""
        return [self.start_one(rank, run, *words, endpoint=endpoint, **environ) for rank in (0, 1)]

    def start_one(self, rank: int, run: str, *words: object, endpoint: str = "", **environ: str) -> Host:
        """The training of one host."""
        command = line(self.workspace, run, "--nproc", 1, "--nnodes", 2, "--node-rank", rank, "--rdzv-endpoint",
                       endpoint or f"{self.namespaces.addresses[0]}:{PORT}", *words)  # fmt: skip
        variables = {**os.environ, "MM_WORKSPACE": str(self.workspace), **environ}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespaces.names[rank], *command], env=variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def link(self, state: str) -> None:
        """Set the link "up" or "down"."""
        ip("-n", self.namespaces.names[1], "link", "set", "end1", state)

    def run(self, name: str) -> RunFolder:
        return Workspace(self.workspace).run(name)


def line(workspace: Path, run: str, *words: object) -> list[str]:
    """A line of `mm train` on the tests' rows."""
    write_rows(workspace / "rows.jsonl", ROWS)
    small = [f"--{name.replace('_', '-')}={value}" for name, value in sizes(layers=1).items()]
    fixed = (
        "train", "--algo", "sft", "--arch", "dense", "--preset", "tiny", *small, "--data", workspace / "rows.jsonl", "--backend",
        "cpu", "--global-batch-size", 4, "--max-length", 64, "--eval-ratio", 0, "--max-steps", 80, "--save-interval", 10,
        "--log-interval", 20, "--dtype", "fp32", "--run", run,
    )  # fmt: skip
    return [sys.executable, "-m", "mm", *map(str, (*fixed, *words))]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_namespaces("h") as namespaces:
        cable(namespaces)
        yield Hosts(namespaces, tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def whole(hosts: Hosts) -> RunFolder:
    """The run that nobody disturbs."""
    ended(hosts.start("whole"))
    return hosts.run("whole")


def ended(processes: list[Host], codes: tuple[int, ...] = (0, 0), seconds: float = 300) -> list[str]:
    """What each host has printed; they end with these codes."""
    said = [process.communicate(timeout=seconds)[0] for process in processes]
    assert tuple(process.returncode for process in processes) == codes, said
    return said


def assert_equal(run: RunFolder, whole: RunFolder) -> None:
    assert weights(run) == weights(whole) and lines(run) == lines(whole)


def test_two_hosts_equal_one_process(hosts: Hosts, whole: RunFolder) -> None:
    subprocess.run(line(hosts.workspace, "alone"), env={**os.environ, "MM_WORKSPACE": str(hosts.workspace)}, check=True)
    alone, both = (load_file(run.model / "model.safetensors") for run in (hosts.run("alone"), whole))
    for name in alone:
        torch.testing.assert_close(both[name], alone[name], atol=1e-5, rtol=1e-4)
    assert whole.manifest["world_size"] == 2


@pytest.mark.parametrize("seconds", [5, 60])
def test_a_link_that_is_down_for_a_while_is_survived(seconds: int, hosts: Hosts, whole: RunFolder) -> None:
    run = hosts.run(f"down{seconds}")
    processes = hosts.start(run.name)
    saved(run, 20)
    hosts.link("down")
    time.sleep(seconds)
    hosts.link("up")
    ended(processes)
    assert_equal(run, whole)


def test_a_slow_link_that_loses_packets_changes_nothing(hosts: Hosts) -> None:
    few = ("--max-steps", 8, "--save-interval", 4)
    ended(hosts.start("fast", *few))
    with two_namespaces("w") as namespaces, slow_link(namespaces, seconds=0.1, loss=0.01):
        ended(Hosts(namespaces, hosts.workspace).start("slow", *few))
        resent = [resent_segments(name) for name in namespaces.names]
    assert sum(resent) > 10, resent
    assert_equal(hosts.run("slow"), hosts.run("fast"))


def resent_segments(namespace: str) -> int:
    """The TCP segments that a namespace has sent again."""
    command = ["ip", "netns", "exec", namespace, "cat", "/proc/net/snmp"]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names, values = (line.split() for line in read.splitlines() if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["RetransSegs"])


def test_a_link_that_stays_down_is_told_on_both_sides(hosts: Hosts, whole: RunFolder) -> None:
    run = hosts.run("cut")
    processes = hosts.start(run.name)
    saved(run, 20)
    hosts.link("down")
    try:
        said = ended(processes, (1, 1), seconds=120)
    finally:
        hosts.link("up")
    assert "Machine 1 has not answered for 100 s" in said[0] and "Machine 0 has not answered for 100 s" in said[1]
    ended(hosts.start(run.name, "--resume"))
    assert_equal(run, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_is_killed_ends_the_other(rank: int, hosts: Hosts, whole: RunFolder) -> None:
    run = hosts.run(f"killed{rank}")
    processes = hosts.start(run.name)
    saved(run, 20)
    for number in hosts.namespaces.processes(rank):
        os.kill(number, signal.SIGKILL)
    said = processes[1 - rank].communicate(timeout=60)[0]
    assert processes[1 - rank].returncode and re.search("lost the other ranks|has ended or cannot be reached", said), said
    processes[rank].wait()
    ended(hosts.start(run.name, "--resume"))
    assert_equal(run, whole)


def test_all_ranks_are_started_again_on_both_hosts(hosts: Hosts, whole: RunFolder) -> None:
    run = hosts.run("restarted")
    processes = hosts.start(run.name, "--max-restarts", 1)
    saved(run, 20)
    os.kill(rank_of(processes[1], 1), signal.SIGKILL)
    said = ended(processes)
    assert "resuming restarted at step" in said[0] and "Rank 1 was killed by SIGKILL" in said[1]
    assert_equal(run, whole)


def test_what_is_wrong_with_the_network_is_told_before_training(hosts: Hosts) -> None:
    for rank, endpoint, environ, expected in (
        (0, f"no-such-host.invalid:{PORT}", {}, "does not resolve on this machine"),
        (0, f"localhost:{PORT}", {}, "which other machines cannot reach"),
        (1, f"{hosts.namespaces.addresses[1]}:{PORT}", {}, "is this machine's address"),
        (1, "", {"GLOO_SOCKET_IFNAME": "eth77"}, "this machine has no such interface; it has end1"),
    ):
        process = hosts.start_one(rank, "never", endpoint=endpoint, **environ)
        assert expected in ended([process], (2,))[0]
    assert not hosts.run("never").path.exists()
