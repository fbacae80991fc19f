"""`--nproc`: several ranks are started, watched, stopped and started again, as one command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from processes import start_mm
from run_files import lines, weights, write_rows
from sizes import sizes

import mm
from mm.core.errors import MMError
from mm.core.workspace import RunFolder, Workspace

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"number {n} " * (1 + n * n % 7)}]}
    for n in range(24)
]  # fmt: skip
FOR_EVER = ("--max-steps", 100_000, "--run", "a", "--save-interval", 5)
PLUGIN = '''
import atexit, contextlib, os, socket, time
from mm.contracts import Callback, hookimpl


def linger():
    """Hang up on the other rank, and end later."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            socket.socket(fileno=os.dup(int(name))).shutdown(socket.SHUT_WR)
    time.sleep(4)


class Odd(Callback):
    """On rank 1 alone: changes its weights, fails, or stands still at step 3."""

    def on_step(self, run):
        if os.environ.get("RANK") == "1" and run.step == 3:
            what = WHAT
            if what == "linger":
                atexit.register(linger)
            if what in ("fail", "linger"):
                raise ValueError("rank 1 has had enough")
            if what == "hang":
                stand_still()
            if what == "drift":
                next(iter(run.roles["policy"].model.parameters())).data.add_(1e-3)


def stand_still():
    time.sleep(600)


@hookimpl
def mm_callbacks(run):
    return [Odd()]
'''


def line(workspace: Path, *words: object) -> tuple[object, ...]:
    """The words of `mm train` with a tiny model, on its own data."""
    write_rows(workspace / "rows.jsonl", ROWS)
    small = [f"--{name.replace('_', '-')}={value}" for name, value in sizes(layers=1).items()]
    return (
        "train", "--algo", "sft", "--arch", "dense", "--preset", "tiny", *small, "--data", workspace / "rows.jsonl", "--backend",
        "cpu", "--global-batch-size", 4, "--max-length", 64, "--eval-ratio", 0, *words,
    )  # fmt: skip


def start(workspace: Path, *words: object) -> subprocess.Popen[str]:
    """Start `mm train` on two ranks."""
    return start_mm(workspace, *line(workspace, "--nproc", 2, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What the command has printed, once it has ended with `code`."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, (process.returncode, out, err)
    return out, err


def rank_of(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank that the command has started."""
    for text in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{text}/environ").read_text().split("\0"):
            return int(text)
    raise AssertionError(f"no rank {rank}")


def saved(run: RunFolder, step: int) -> None:
    """Wait for the checkpoint of a step."""
    deadline = time.monotonic() + 120
    while not (run.checkpoints / f"step-{step:08d}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_saved_without_launcher(process: subprocess.Popen[str], run: RunFolder) -> None:
    """The ranks of a launcher that is killed in mid-training save, and end within a minute."""
    saved(run, 5)
    ranks = [rank_of(process, rank) for rank in (0, 1)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert run.manifest["state"] == "interrupted"
    assert (run.checkpoints / f"step-{run.manifest['step']:08d}").exists()


def odd(workspace: Path, what: str, *words: object) -> subprocess.Popen[str]:
    """A training with the plugin above."""
    (workspace / "odd.py").write_text(PLUGIN.replace("WHAT", repr(what)))
    return start(workspace, "-p", workspace / "odd.py", "--run", "a", *words)


def test_one_command_trains_on_two_ranks_and_speaks_once(tmp_path: Path) -> None:
    out, err = finished(start(tmp_path, "--max-steps", 3, "--log-interval", 1))
    (run,) = Workspace(tmp_path).runs()
    assert run.manifest["world_size"] == 2 and run.manifest["state"] == "finished"
    assert out.count("run: ") == 1 and f"run: {run.name}, on 2 ranks" in err
    assert err.count("chat units") == 1 and err.count("step 3/3") == 1
    assert [line["step"] for line in lines(run)] == [1, 2, 3]


def test_a_mistake_is_told_once_before_a_rank_is_started(tmp_path: Path) -> None:
    _, err = finished(start(tmp_path, "--learning-rate", "fast"), 2)
    assert err.count("--learning-rate") == 1 and "ranks" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--node-rank", 1], "--node-rank 1 needs --nnodes"),
        (["--nnodes", 2], "--nnodes 2 needs --rdzv-endpoint HOST:PORT"),
        (["--nnodes", 2, "--node-rank", 2, "--rdzv-endpoint", "a:1"], "numbered from 0"),
        (["--nproc", 0], "nproc"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: Sequence[object], said: str, tmp_path: Path) -> None:
    assert said in finished(start(tmp_path, *words), 2)[1]


@pytest.mark.parametrize("what", ["fail", "linger"])
def test_what_another_rank_says_when_it_ends_them_is_shown(what: str, tmp_path: Path) -> None:
    """Also if the rank closes for longer than the other needs to see that it has lost it."""
    _, err = finished(odd(tmp_path, what, "--max-steps", 6), 1)
    assert "Rank 1 ended with exit code 1 in step 3" in err and "rank 1 has had enough" in err and "odd.py" in err


def test_a_rank_that_stands_still_is_told_with_its_stack(tmp_path: Path) -> None:
    _, err = finished(odd(tmp_path, "hang", "--max-steps", 6, "--hang-seconds", 12), 1)
    assert "No progress for 12 s (--hang-seconds)" in err and "Rank 1 stands here:" in err and "stand_still" in err
    assert re.search(r"rank 0: in step 4, .*waiting for the other ranks in: ", err)


def test_ranks_whose_weights_drift_apart_are_told(tmp_path: Path) -> None:
    _, err = finished(odd(tmp_path, "drift", "--max-steps", 6, "--log-interval", 1), 1)
    assert "the weights of rank 1 are not those of rank 0: policy: " in err


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_to_the_command_saves_on_all_ranks_and_resumes_on_one(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, "--max-steps", 4000, "--run", "a", "--save-interval", 5)
    run = Workspace(tmp_path).run("a")
    saved(run, 5)
    process.send_signal(number)
    _, err = finished(process, 128 + number)
    assert "saved. Resume with: mm train --resume --run a" in err and "Rank" not in err
    step = run.manifest["step"]
    again = start_mm(tmp_path, "train", "--resume", "--run", "a", "--nproc", 1, "--stop-after-steps", step + 2)
    assert again.wait(timeout=120) == 0
    assert (run.manifest["world_size"], run.manifest["step"]) == (1, step + 2)


@pytest.mark.long
def test_the_command_of_a_slurm_job_that_is_queued_again_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    words = ("--max-steps", 400, "--run", "a", "--save-interval", 5, "--log-interval", 1)
    process = start(tmp_path, *words)
    saved(Workspace(tmp_path).run("a"), 5)
    process.send_signal(signal.SIGTERM)
    finished(process, 128 + signal.SIGTERM)
    assert "Run a exists" in finished(start(tmp_path, *words), 2)[1]  # a second command in the job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    process = start(tmp_path, *words)
    stopped = Workspace(tmp_path).run("a").manifest["step"]
    saved(Workspace(tmp_path).run("a"), stopped - stopped % 5 + 5)
    process.send_signal(signal.SIGTERM)
    assert f"resuming a at step {stopped} of 400" in finished(process, 128 + signal.SIGTERM)[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_rank_is_told_and_the_restart_equals_an_undisturbed_run(rank: int, tmp_path: Path) -> None:
    words = ("--max-steps", 120, "--save-interval", 10, "--log-interval", 30)
    process = start(tmp_path, *words, "--run", "killed", "--max-restarts", 1)
    run = Workspace(tmp_path).run("killed")
    saved(run, 20)
    os.kill(rank_of(process, rank), signal.SIGKILL)
    _, err = finished(process)
    assert f"Rank {rank} was killed by SIGKILL in step" in err and "starting all ranks again, 1 of 1 times" in err
    assert "resuming killed at step" in err
    finished(start(tmp_path, *words, "--run", "whole"))
    whole = Workspace(tmp_path).run("whole")
    assert weights(run) == weights(whole) and lines(run) == lines(whole)


@pytest.mark.slow
def test_ranks_whose_launcher_is_gone_save_and_end(tmp_path: Path) -> None:
    assert_saved_without_launcher(start(tmp_path, *FOR_EVER), Workspace(tmp_path).run("a"))


@pytest.mark.slow
def test_a_pipeline_runs_on_two_ranks(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"a line about the number {n}"} for n in range(40)])
    small = [f"--{name.replace('_', '-')}={value}" for name, value in sizes(layers=1).items()]
    words = (
        "run", "tokenizer", "pretrain", "--data", tmp_path / "rows.jsonl", "--arch", "dense", "--preset", "tiny", *small,
        "--max-steps", 3, "--backend", "cpu", "--max-length", 64, "--vocab-size", 300, "--nproc", 2,
    )  # fmt: skip
    _, err = finished(start_mm(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    (run,) = Workspace(tmp_path).runs()
    assert run.manifest["world_size"] == 2 and err.count("[pretrain] ") == 1 and err.count("[tokenizer] ") == 1
    _, err = finished(start_mm(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert "[tokenizer] up to date" in err and "[pretrain] up to date" in err and len(Workspace(tmp_path).runs()) == 1


@pytest.mark.slow
def test_the_same_in_python(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    small = {**sizes(layers=1), "arch": "dense", "preset": "tiny", "max_length": 64, "eval_ratio": 0.0, "backend": "cpu"}
    given = {"data": tmp_path / "rows.jsonl", "global_batch_size": 4, "workspace": tmp_path, "quiet": True, **small}
    stopped = mm.train("sft", run="a", nproc=2, max_steps=4, stop_after_steps=2, **given)
    assert stopped.manifest["world_size"] == 2 and stopped.manifest["step"] == 2
    finished_run = mm.train("sft", run="a", resume=True, nproc=1, workspace=tmp_path, quiet=True)
    assert finished_run.manifest["world_size"] == 1 and finished_run.manifest["state"] == "finished"
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"a line about the number {n}"} for n in range(40)])
    stages, given = ["tokenizer", "pretrain"], {**given, "vocab_size": 300, "max_steps": 2}
    made = mm.run(stages, **{**given, "nproc": 2, "data": [texts]})
    assert (made["run:pretrain"] / "config.json").exists()
    with pytest.raises(MMError, match="exit code 2"):
        mm.run(stages, force=True, **{**given, "nproc": 2, "data": [tmp_path / "missing.jsonl"]})
