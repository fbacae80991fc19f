"""Stopping and going on gives the run that was never stopped, and what cannot give it is refused."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import start_mm
from run_files import Line, lines, weights
from safetensors.torch import load_file
from sizes import sizes

from mm.core.errors import CheckpointError, UsageError
from mm.core.workspace import RunFolder, Workspace
from mm.testing import tiny_run
from mm.testing.pytest_plugin import Train

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"number {n} " * (1 + n % 5)}]}
    for n in range(11)
]  # fmt: skip
SMALL = {
    **sizes(), "max_steps": 6, "global_batch_size": 3, "log_interval": 4, "learning_rate": 1e-2, "micro_batch_tokens": 64,
    "eval_ratio": 0.2, "run": "a",
}  # fmt: skip
pytestmark = pytest.mark.mm_train("sft", rows=ROWS, **SMALL)


def steady(run: RunFolder) -> list[Line]:
    """The metrics, without the evaluation that a stop adds."""
    return [line for line in lines(run) if "learning_rate" in line or line["step"] in (0, 6)]


@pytest.fixture(scope="module", params=["adamw", "muon"])
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunFolder]:
    return request.param, tiny_run(tmp_path_factory.mktemp(request.param), "sft", rows=ROWS, **SMALL, optimizer=request.param)


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(step: int, unbroken: tuple[str, RunFolder], mm_train: Train) -> None:
    optimizer, whole = unbroken
    stopped = mm_train(optimizer=optimizer, stop_after_steps=step)
    assert (stopped.manifest["state"], stopped.manifest["step"]) == ("stopped", step)
    assert weights(stopped) != weights(whole)
    resumed = mm_train(optimizer=optimizer, resume=True)
    assert resumed.manifest["state"] == "finished"
    assert weights(resumed) == weights(whole)
    assert steady(resumed) == steady(whole)


def test_a_run_may_stop_more_than_once(mm_train: Train) -> None:
    for step in (1, 2, 5):
        mm_train(stop_after_steps=step, resume=step > 1)
    resumed, whole = mm_train(resume=True), mm_train(run="whole")
    assert weights(resumed) == weights(whole)
    assert steady(resumed) == steady(whole)


def test_what_must_not_change_is_refused(mm_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No run 'a'"):
        mm_train(resume=True)
    mm_train(stop_after_steps=2)
    before = (tmp_path / "runs/a/manifest.json").read_bytes()
    with pytest.raises(UsageError, match=r"Run a exists; resume it with --resume --run a"):
        mm_train()
    with pytest.raises(UsageError, match=r"--learning-rate is 0.01 in this run and cannot change"):
        mm_train(resume=True, learning_rate=2e-2)
    with pytest.raises(UsageError, match="The data of run a has changed"):
        mm_train(resume=True, rows=ROWS[:-1])
    assert (tmp_path / "runs/a/manifest.json").read_bytes() == before
    mm_train(resume=True, log_interval=1, keep_checkpoints=1)
    assert [p.name for p in (tmp_path / "runs/a/checkpoints").iterdir()] == ["step-00000006"]
    with pytest.raises(UsageError, match=r"Run a is finished; continue its model with --from a"):
        mm_train(resume=True)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["model.safetensors", "state/__0_0.distcp"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    file: str, mm_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mm

    whole = mm_train(run="whole")
    stopped = mm_train(stop_after_steps=4, save_interval=2)
    flip(stopped.checkpoints / "step-00000004" / file)
    capsys.readouterr()
    resumed = mm.train("sft", resume=True, run="a", workspace=tmp_path)
    said = capsys.readouterr().err
    assert "checkpoint step-00000004 is not used" in said and f"{file} is damaged" in said
    assert "resuming a at step 2 of 6" in said
    assert weights(resumed) == weights(whole)
    assert steady(resumed) == steady(whole)


def test_without_a_whole_checkpoint_nothing_is_resumed(mm_train: Train) -> None:
    stopped = mm_train(stop_after_steps=1)
    flip(stopped.checkpoints / "step-00000001" / "config.json")
    with pytest.raises(CheckpointError, match=r"no usable checkpoint.*config\.json is damaged"):
        mm_train(resume=True)


def test_a_saved_state_holds_the_weights_of_its_step(mm_train: Train) -> None:
    run = mm_train(save_interval=3)
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step-00000003", "step-00000006"]
    early = mm_train(run="b", stop_after_steps=3)
    saved, stopped = load_file(run.checkpoints / "step-00000003/model.safetensors"), load_file(early.model / "model.safetensors")
    assert all(saved[name].equal(stopped[name]) for name in stopped)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number: int, code: int, mm_train: Train, tmp_path: Path) -> None:
    mm_train(run="start", max_steps=1)
    # a model of a few thousand parameters, so that the run ends only by the signal
    words = ["--from", "start", "--data", str(tmp_path / "tiny_rows.jsonl"), "--run", "a", "--backend", "cpu", "--dtype", "fp32"]
    more = ["--max-steps", "100000", "--global-batch-size", "2", "--max-length", "128"]
    more += ["--log-interval", "1", "--eval-ratio", "0"]
    process = start_mm(tmp_path, "train", "--algo", "sft", *words, *more, stderr=subprocess.PIPE)
    try:
        metrics, deadline = tmp_path / "runs/a/metrics.jsonl", time.monotonic() + 60
        while not (metrics.exists() and '"learning_rate"' in metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, said
    run = Workspace(tmp_path).existing("a")
    step = run.manifest["step"]
    assert run.manifest["state"] == "interrupted"
    assert f"Stopped at step {step} and saved. Resume with: mm train --resume --run a" in said
    assert (run.checkpoints / f"step-{step:08d}" / "index.json").exists()
    import mm

    resumed = mm.train("sft", resume=True, run="a", workspace=tmp_path, stop_after_steps=step + 2, quiet=True)
    assert (resumed.manifest["state"], resumed.manifest["step"]) == ("stopped", step + 2)


def test_a_taken_name_is_answered_as_its_run_stands(mm_train: Train) -> None:
    run = mm_train()
    with pytest.raises(UsageError, match=r"Run a exists; it is finished: .* mm runs rm a"):
        mm_train()
    shutil.rmtree(run.checkpoints)
    run.update_manifest({"state": "failed"})
    with pytest.raises(UsageError, match=r"Run a exists; it has saved nothing yet: .* mm runs rm a"):
        mm_train()
