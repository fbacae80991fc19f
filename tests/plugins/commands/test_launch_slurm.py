"""`mm launch slurm`: the script as data, what its nodes run, and what is refused. test_slurm.py gives it to a real Slurm."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import write_rows

from mm.core.workspace import Workspace
from mm.testing.pytest_plugin import CommandLine, Plugins, Train

TRAIN = ("train", "--algo", "sft", "--arch", "dense", "--preset", "tiny", "--data", "my rows.jsonl")
CPU = (*TRAIN, "--backend", "cpu")
SRUN = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
if words[1:3] != ["bash", "-c"]:
    print(json.dumps(words))
    sys.exit({code})
for node in ("0", "1"):
    environ = {{**os.environ, "SLURM_NODEID": node}}
    print(subprocess.run([*words[1:2], *words[2:4], words[4], "{python}", "-c", "import json,sys;print(json.dumps(sys.argv[1:]))",
                         *words[5:]], env=environ, capture_output=True, text=True).stdout, end="")
"""
SCONTROL = '#!/bin/sh\n[ "$1" = show ] && printf "n7\\nn8\\n" || echo "$@"\n'


@pytest.fixture
def rows(mm_workspace: Path) -> Path:
    said = [({"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"number {n}"}) for n in range(8)]
    return write_rows(mm_workspace / "my rows.jsonl", [{"messages": messages} for messages in said])


@pytest.fixture
def mm(mm_cli: CommandLine, rows: Path) -> CommandLine:
    """The command line in a workspace with rows."""
    return mm_cli


def options(script: str) -> dict[str, str]:
    """The options of sbatch in a script, read as a shell would."""
    words = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in script.splitlines() if line.startswith("#SBATCH ")]
    return dict(word.partition("=")[::2] for word in words)


def executed(script: str, folder: Path, code: int = 0, exit_code: int = 0) -> list[str]:
    """The lines that a script prints where `srun` prints its words and ends with `code`, and `scontrol` its own."""
    for name, text in (("srun", SRUN.format(python=sys.executable, code=code)), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "40012", "SLURM_NNODES": "2"}
    done = subprocess.run(["bash"], input=script, env=environ, capture_output=True, text=True)
    assert done.returncode == exit_code, done.stderr
    return done.stdout.splitlines()


def test_one_node_runs_the_line_as_it_was_typed_with_what_was_chosen(mm: CommandLine, tmp_path: Path) -> None:
    script = mm("launch", "slurm", "--time", "1-00:30:00", "--partition", "fast lane", "--sbatch=--comment=it's mine", "--",
                *CPU, "--nproc", 2, "--threads", 3, "--run", "it's a run").out  # fmt: skip
    assert options(script) == {
        "--job-name": "it's a run", "--chdir": os.getcwd(), "--partition": "fast lane", "--nodes": "1", "--ntasks-per-node": "1",
        "--cpus-per-task": "6", "--time": "1-00:30:00", "--signal": "TERM@120", "--open-mode": "append", "--requeue": "",
        "--comment": "it's mine",
    }  # fmt: skip
    (words,) = map(json.loads, executed(script, tmp_path))
    assert words[:4] == ["--cpus-per-task=6", sys.executable, "-m", "mm"]
    assert tuple(words[4 : 4 + len(CPU)]) == CPU
    assert words[4 + len(CPU) : -1] == ["--nproc", "2", "--threads", "3", "--run", "it's a run"]
    assert words[-1].startswith("--tokenizer=/")


def test_each_node_of_several_has_its_number_and_the_meeting_place(mm: CommandLine, tmp_path: Path) -> None:
    script = mm("launch", "slurm", "--nodes", 2, "--", *CPU, "--nproc", 4, "--run", "a").out
    assert options(script)["--nodes"] == "2" and options(script)["--cpus-per-task"] == "4"
    for node, line in enumerate(executed(script, tmp_path)):
        words = json.loads(line)
        assert words[-6:] == ["--nnodes", "2", "--node-rank", str(node), "--rdzv-endpoint", "n7:20012"]
        assert words[:3] == [sys.executable, "-m", "mm"]


def test_a_run_name_is_chosen(mm: CommandLine, tmp_path: Path) -> None:
    done = mm("launch", "slurm", "--", *CPU)
    (words,) = map(json.loads, executed(done.out, tmp_path))
    name = next(word for word in words if word.startswith("--run=")).removeprefix("--run=")
    assert f"run: {name}" in done.err and options(done.out)["--job-name"] == name


def test_the_environment_and_plugins_of_the_line_are_the_jobs(
    mm: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_TRAIN_EPOCHS", "2")
    (tmp_path / "own.py").write_text("from mm.contracts import hookimpl\n\n@hookimpl\ndef mm_rewards():\n    return []\n")
    script = mm("-p", "own.py", "launch", "slurm", *CPU).out
    assert "export MM_TRAIN_EPOCHS=2\n" in script and f"export MM_WORKSPACE={tmp_path}\n" in script
    assert [word for line in executed(script, tmp_path) for word in json.loads(line)][4:6] == ["-p", str(tmp_path / "own.py")]


@pytest.mark.parametrize(
    ("backend", "words", "chips"),
    [
        ("npu", ["--nproc", 8], ("--gres", "npu:8")),
        ("cuda", ["--nproc", 4], ("--gpus-per-node", "4")),
        ("cuda", ["--nproc", "auto"], ("--gres", "gpu:a100:2")),
    ],
)
def test_the_chips_follow_from_the_backend(backend: str, words: list[object], chips: tuple[str, str], mm: CommandLine) -> None:
    gres = ["--gres", chips[1]] if "auto" in words else []
    script = mm("launch", "slurm", *gres, "--", *TRAIN, "--backend", backend, *words).out
    assert chips in options(script).items() and f"--backend {backend}" in script


def test_a_login_node_need_not_have_the_chip(mm: CommandLine, mm_plugins: Plugins) -> None:
    mm_plugins(chip="""
from mm.contracts import BackendSpec, Container, Probe, hookimpl

@hookimpl
def mm_backends():
    yield BackendSpec(name="chip", summary="A chip.", target="none:None", probe=lambda: Probe(False, "no driver"),
                      container=Container(card="/dev/chip{}"))
""")
    done = mm("launch", "slurm", "--", *TRAIN, "--backend", "chip")
    assert "chip cannot be used on this machine (no driver): the settings are checked without it" in done.err
    assert "--backend chip" in done.out and options(done.out)["--gres"] == "chip:1"
    assert "Name their number, --nproc N, or give --gres" in mm(
        "launch", "slurm", "--", *TRAIN, "--backend", "chip", "--nproc", "auto", code=2
    ).err


@pytest.mark.parametrize(("code", "again"), [(143, ["requeue 40012"]), (0, []), (1, [])])
def test_the_job_is_queued_again_after_its_time_limit_alone(
    code: int, again: list[str], mm: CommandLine, tmp_path: Path
) -> None:
    script = mm("launch", "slurm", "--continue", "--", *CPU).out
    assert executed(script, tmp_path, code, 0 if again else code)[1:] == again


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["chat", "a"], "Name the training behind the options"),
        ([], "Name the training behind the options"),
        ([*TRAIN], "name theirs, such as --backend cpu"),
        ([*CPU, "--nproc", "auto"], "Name their number, --nproc N, or give --cpus"),
        ([*CPU, "--nnodes", "2"], "--nnodes: the script gives each node its own"),
        ([*CPU, "--dry-run"], "--dry-run trains nothing"),
        ([*CPU, "--learning-rate", "fast"], "--learning-rate"),
        ([*CPU, "--temperature", "1"], "--temperature"),
        ([*CPU, "--data", "missing.jsonl"], "missing.jsonl"),
        (["train", "--resume", "--backend", "cpu"], "name it with --run"),
        (["train", "--resume", "--run", "nothing"], "No run 'nothing'"),
    ],
)
def test_a_training_that_cannot_work_is_refused_before_anything_is_written(
    words: list[str], expected: str, mm: CommandLine, tmp_path: Path
) -> None:
    done = mm("launch", "slurm", "--out", "job.sh", "--", *words, code=2)
    assert expected in done.err and not (tmp_path / "job.sh").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--time", "soon"], "--time soon: expected"),
        (["--time", "2"], "--time 2 is 120 s"),
        (["--time", "00:01:30"], "--time 00:01:30 is 90 s"),
        (["--time", "0-00:02", "--stop-before", "200"], "is 120 s"),
        (["--sbatch=-A me"], "expected a long option of sbatch"),
        (["--sbatch=--no-requeue"], "this command writes what the training needs of --no-requeue"),
        (["--sbatch=--signal=INT@3"], "this command writes what the training needs of --signal"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], expected: str, mm: CommandLine) -> None:
    assert expected in mm("launch", "slurm", *words, "--", *CPU, code=2).err


def test_a_script_is_not_overwritten_by_itself(mm: CommandLine, tmp_path: Path) -> None:
    done = mm("launch", "slurm", "--out", "my job.sh", "--", *CPU, "--run", "a")
    assert "submit it with: sbatch 'my job.sh'" in done.err and not done.out
    text = (tmp_path / "my job.sh").read_text()
    assert "choose another --out, or pass --force" in mm("launch", "slurm", "--out", "my job.sh", "--", *CPU, code=2).err
    assert (tmp_path / "my job.sh").read_text() == text
    mm("launch", "slurm", "--out", "my job.sh", "--force", "--", *CPU, "--run", "b")
    assert options((tmp_path / "my job.sh").read_text())["--job-name"] == "b"


def test_submitting_prints_the_number_of_the_job(
    mm: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch is not on PATH" in mm("launch", "slurm", "--submit", "--", *CPU, code=2).err
    (tmp_path / "sbatch").write_text("#!/bin/sh\nread line\n[ \"$line\" = '#!/bin/bash' ] && echo '17;cluster'\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert mm("launch", "slurm", "--submit", "--", *CPU).out == "17\n"
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition' >&2\nexit 1\n")
    assert "sbatch ended with exit code 1: error: invalid partition" in mm("launch", "slurm", "--submit", "--", *CPU, code=1).err


def test_a_run_is_resumed_with_its_own_settings(mm: CommandLine, mm_train: Train, tmp_path: Path) -> None:
    stopped = mm_train("sft", run="stopped", data=tmp_path / "my rows.jsonl", max_steps=4, stop_after_steps=2)
    assert Workspace(tmp_path).run("stopped").manifest["state"] != "finished", stopped
    script = mm("launch", "slurm", "--", "train", "--resume", "--run", "stopped").out
    (words,) = map(json.loads, executed(script, tmp_path))
    assert words[4:] == ["train", "--resume", "--run", "stopped"]
