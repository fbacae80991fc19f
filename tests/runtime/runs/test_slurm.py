"""Scripts of `mm launch slurm` in a Slurm of two nodes: to the end, queued again, and up to their time limit. Run with:
pytest -m slurm."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from processes import start_mm
from run_files import lines, weights
from slurm_cluster import MISSING, Cluster, slurm_cluster
from test_launch import line, saved

from mm.core.workspace import RunFolder, Workspace, step_of

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
STEPS = ("--max-steps", 300, "--save-interval", 20, "--log-interval", 50, "--dtype", "fp32")


@attrs.frozen
class Site:
    """A cluster and a workspace that its nodes share."""

    cluster: Cluster
    workspace: Path

    def submit(self, run: str, *words: object, options: tuple[object, ...] = ()) -> str:
        """Submit a training with `mm launch slurm`. Returns the number of the job."""
        launch = [sys.executable, "-m", "mm", "launch", "slurm", *options, "--submit", "--"]
        words = line(self.workspace, "--run", run, *words)
        return self.cluster.typed(*launch, *words, folder=self.workspace, MM_WORKSPACE=str(self.workspace))

    def control(self, *words: object) -> None:
        """Run a command of Slurm."""
        self.cluster.typed(*words, folder=self.workspace)

    def run(self, name: str) -> RunFolder:
        return Workspace(self.workspace).run(name)

    def log(self, job: str) -> str:
        """What a job has printed."""
        path = self.workspace / f"slurm-{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def finished(self, job: str) -> None:
        """Wait for the end of a job that ends well."""
        assert self.cluster.ended(job) == "COMPLETED 0:0", self.log(job)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        workspace = tmp_path_factory.mktemp("shared") / "it's a work space"
        workspace.mkdir()
        yield Site(cluster, workspace)


def undisturbed(site: Site, nodes: int, ranks: int) -> RunFolder:
    """The run that nobody disturbs: on one machine without Slurm."""
    run = site.run(f"whole-{nodes}-{ranks}")
    if not run.path.exists():
        if nodes == 1:
            words = line(site.workspace, "--run", run.name, "--nproc", ranks, *STEPS)
            assert start_mm(site.workspace, *words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).wait(timeout=300) == 0
        else:
            site.finished(site.submit(run.name, "--nproc", ranks, *STEPS, options=("--nodes", nodes)))
    return run


def test_a_job_on_two_ranks_equals_the_same_command_without_slurm(site: Site) -> None:
    job = site.submit("plain", "--nproc", 2, *STEPS, options=("--partition", "main", "--time", 30))
    site.finished(job)
    run, whole = site.run("plain"), undisturbed(site, 1, 2)
    assert run.manifest["world_size"] == 2 and weights(run) == weights(whole) and lines(run) == lines(whole)


@pytest.mark.parametrize(
    ("backend", "ranks", "accepted"), [("cuda", 2, True), ("cuda", 3, False), ("npu", 2, True), ("npu", 3, False)]
)
def test_slurm_understands_what_chips_a_job_needs(backend: str, ranks: int, accepted: bool, site: Site) -> None:
    words = [*line(site.workspace, "--run", "chips", "--nproc", ranks), "--backend", backend]
    launch = [sys.executable, "-m", "mm", "launch", "slurm", "--cpus", 2, "--out", site.workspace / "chips.sh", "--force", "--"]
    site.control(*launch, *words)
    command = site.cluster.on(0, "sbatch", "--test-only", site.workspace / "chips.sh")
    done = subprocess.run(command, env=site.cluster.environ, capture_output=True, text=True)
    assert (done.returncode == 0) == accepted and ("to start at" in done.stderr) == accepted, done.stderr


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 1), (1, 2), (2, 1)])
def test_a_job_that_is_queued_again_equals_an_undisturbed_run(nodes: int, ranks: int, site: Site) -> None:
    run, whole = site.run(f"again-{nodes}-{ranks}"), undisturbed(site, nodes, ranks)
    job = site.submit(run.name, "--nproc", ranks, *STEPS, options=("--nodes", nodes))
    saved(run, 40)
    site.control("scontrol", "requeue", job)
    site.finished(job)
    log = site.log(job)
    assert "saved. Resume with" in log and f"resuming {run.name} at step" in log
    assert run.manifest["world_size"] == nodes * ranks and run.manifest["state"] == "finished"
    assert weights(run) == weights(whole) and lines(run) == lines(whole)


def test_another_job_does_not_continue_the_run_of_an_earlier_one(site: Site) -> None:
    script = site.workspace / "job.sh"
    words = line(site.workspace, "--run", "twice", "--nproc", 2, "--max-steps", 2)
    site.cluster.typed(sys.executable, "-m", "mm", "launch", "slurm", "--out", script, "--", *words, folder=site.workspace)
    first, second = (
        site.cluster.typed("sbatch", "--parsable", *options, script, folder=site.workspace)
        for options in ((), ("--dependency=singleton",))
    )
    site.finished(first)
    assert site.cluster.ended(second) == "FAILED 2:0" and "Run twice exists" in site.log(second)


def test_the_time_limit_saves_and_the_job_goes_on_in_its_next_turn_until_it_is_cancelled(site: Site) -> None:
    run = site.run("long")
    job = site.submit(
        run.name, "--nproc", 2, "--max-steps", 100_000, "--save-interval", 100_000, "--log-interval", 100_000,
        options=("--time", 1, "--stop-before", 5, "--continue"),
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while "resuming long at step" not in site.log(job):
        assert time.monotonic() < deadline, (site.cluster.state(job), site.log(job))
        time.sleep(0.5)
    assert "DUE TO TIME LIMIT" not in site.log(job)
    (checkpoint,) = run.checkpoints.glob("step-*")
    assert f"resuming long at step {step_of(checkpoint)} of" in site.log(job)
    time.sleep(5)
    site.control("scancel", job)
    assert site.cluster.ended(job).startswith("CANCELLED")
    assert run.manifest["state"] == "interrupted" and run.manifest["step"] > step_of(checkpoint)
