"""A Slurm of two nodes, in two network namespaces. Needs root, iproute2, and Debian's packages slurm-wlm and munge."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs
from namespaces import MISSING as NO_NAMESPACES, Namespaces, cable, two_namespaces

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "nsenter", "unshare")
MISSING = NO_NAMESPACES or ", ".join(f"needs {name}" for name in _PROGRAMS if not shutil.which(name))
_CONF = """\
ClusterName=mm
SlurmctldHost=n0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a job that is queued again waits until its credential has expired, 2 minutes by default
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=60
GresTypes=gpu,npu
NodeName=n[0-1] CPUs=2 Gres=gpu:2,npu:2 State=UNKNOWN
PartitionName=main Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP
"""


@attrs.frozen
class Cluster:
    """A running Slurm; its nodes are `n0` and `n1`, and its commands are typed on the first."""

    folder: Path
    namespaces: Namespaces

    def on(self, node: int, *words: object) -> list[str]:
        """The command that runs `words` on a node: with its network, its name, and the names of all nodes."""
        into = ["nsenter", f"--net=/run/netns/{self.namespaces.names[node]}", "unshare", "--uts", "--mount", "sh", "-c"]
        entered = f'hostname n{node}; mount --bind {self.folder}/hosts /etc/hosts; exec "$@"'
        return [*into, entered, "sh", *map(str, words)]

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a user of the cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def typed(self, *words: object, folder: Path, **environ: str) -> str:
        """What a command prints that a user has typed in a folder. Raises AssertionError with its errors if it fails."""
        command, environ = self.on(0, *words), {**self.environ, **environ}
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING, with its exit code: `COMPLETED 0:0`."""
        shown = self.typed("scontrol", "show", "job", "--oneliner", job, folder=self.folder)
        return " ".join(match[1] for match in re.finditer(r"(?:JobState|ExitCode)=(\S+)", shown))

    def ended(self, job: str, seconds: float = 180) -> str:
        """The state of a job that has ended."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)).startswith(("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")):
            assert time.monotonic() < deadline, state
            time.sleep(0.5)
        return state


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start munge, the controller and the two nodes; end them, with their jobs, when the block is left."""
    with two_namespaces("s") as namespaces, ExitStack() as started:
        cable(namespaces)
        cluster = Cluster(folder, namespaces)
        hosts = "".join(f"{address} n{node}\n" for node, address in enumerate(namespaces.addresses))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder))
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/card[0-1]\nName=npu Count=2\n")
        for name in ("card0", "card1"):
            (folder / name).touch()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        for name in ("state", "spool.n0", "spool.n1"):
            (folder / name).mkdir()
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
        started.enter_context(_daemon(cluster, ["munged", "--foreground", "--force", *options]))
        for node, name in ((0, "slurmctld"), (0, "slurmd"), (1, "slurmd")):
            started.enter_context(_daemon(cluster, cluster.on(node, name, "-D")))
        started.callback(_end_jobs, cluster)
        deadline = time.monotonic() + 60
        ready = cluster.on(0, "srun", "--nodes=2", "--immediate=5", "true")
        while subprocess.run(ready, env=cluster.environ, capture_output=True, timeout=60).returncode:
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield cluster


@contextmanager
def _daemon(cluster: Cluster, command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=cluster.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()  # the controller would wait a minute for nodes that have gone
        process.wait()


def _end_jobs(cluster: Cluster) -> None:
    """Kill what still runs on the nodes beside their daemons."""
    own = {"slurmctld", "slurmd"}
    for node in (0, 1):
        for number in cluster.namespaces.processes(node):
            with suppress(OSError):
                if Path(f"/proc/{number}/comm").read_text().strip() not in own:
                    os.kill(number, signal.SIGKILL)
