"""What a training shows while it runs: on terminals of any width, in a pipe, and in log.txt."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import drawing
import pytest
from hypothesis import given, strategies as st

from mm.runtime.training.callbacks import progress_bar
from mm.runtime.training.headline import clock, fit, headline, texts
from mm.testing.pytest_plugin import Train

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@given(st.lists(st.text("ab 1", min_size=1, max_size=12), min_size=1), st.integers(1, 90))
def test_a_line_fits_or_is_its_first_part(parts: list[str], width: int) -> None:
    line, whole = fit(parts, width), fit(parts)
    assert whole.startswith(line) and (len(line) <= width or line == parts[0])
    assert fit(parts, len(whole)) == whole


def test_reward_and_loss_come_first_whatever_else_there_is() -> None:
    metrics = {"clip_fraction": 0.0, "engine_gap": 4e-4, "loss": 0.0011, "reward": 0.5, "step": 3, "length": 36.0, "nll": 2.0}
    assert texts(metrics) == ["reward 0.5", "loss 0.0011", "length 36", "clip_fraction 0", "engine_gap 0.0004"]
    assert list(headline(metrics)) == ["reward", "loss", "length"] and headline({"mine": 1.0, "step": 1}) == {"mine": 1.0}
    assert [clock(0.4), clock(192), clock(7384.6)] == ["0:00:00", "0:03:12", "2:03:05"]


def log_of(run: Path) -> list[str]:
    """The lines of log.txt without their times."""
    return [line[20:] for line in (run / "log.txt").read_text(encoding="utf-8").splitlines()]


def test_a_run_shorter_than_the_interval_shows_loss_speed_and_time_left(mm_train: Train) -> None:
    lines = log_of(mm_train("pretrain", max_steps=6, stop_after_steps=3).path)
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split("  ")[0] for line in steps] == ["step 1/6", "step 3/6"]
    assert re.search(r"  \d:\d\d:\d\d left  [\d,]+ tokens/s  [\d.]+ GiB", steps[0])
    assert re.search(r"  \d:\d\d:\d\d left  loss [\d.]+  [\d,]+ tokens/s  ", steps[1])


def test_a_line_after_an_evaluation_has_the_speed_of_the_steps(mm_train: Train) -> None:
    """Also the last line of a run that stops between two log intervals, which comes after the evaluation at the end."""
    options = {"rows": [{"text": f"number {n} " * 9} for n in range(40)], "eval_ratio": 0.2, "eval_interval": 2}
    run = mm_train("pretrain", max_steps=6, stop_after_steps=3, run="a", **options)
    mm_train("pretrain", run="a", resume=True, max_steps=6, stop_after_steps=5, **options)
    lines = log_of(run.path)
    last = [line for line in lines if line.startswith(("step 3/6", "step 5/6"))]
    assert len(last) == 2 and any(line.startswith("held out") for line in lines)
    assert all(int(re.search(r"  ([\d,]+) tokens/s", line)[1].replace(",", "")) > 0 for line in last)  # type: ignore[index]


def test_long_steps_show_their_metrics_before_the_interval_ends(mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "_PATIENCE", -1.0)
    lines = log_of(mm_train("pretrain", max_steps=3).path)
    steps = [line.split("  ") for line in lines if line.startswith("step ")]
    assert [parts[0] for parts in steps] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all(parts[2].startswith("loss ") for parts in steps)


def test_looking_at_the_metrics_leaves_them_as_they_are(mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from run_files import lines

    options = {"max_steps": 4, "log_interval": 4, "rows": [{"text": f"row {n} of several"} for n in range(8)]}
    monkeypatch.setattr(progress_bar, "_PATIENCE", -1.0)
    logged = [
        {name: value for name, value in line.items() if name != "seconds"}
        for line in lines(mm_train("pretrain", run="looked", **options), "metrics.jsonl")
    ]
    single = lines(mm_train("pretrain", run="each", **{**options, "log_interval": 1}), "metrics.jsonl")
    assert logged[0]["loss"] == pytest.approx(sum(line["loss"] for line in single) / 4)


@pytest.mark.mm_plugins("drawing")
def test_reinforcement_shows_the_reward_first_and_how_many_rows_are_held_out(mm_train: Train) -> None:
    run = mm_train(
        "grpo", rows=drawing.PROMPTS, num_generations=2, max_new_tokens=4, global_batch_size=2, eval_ratio=0.5, reward="vowels",
        max_steps=2, eval_interval=2, **drawing.SMALL,
    )  # fmt: skip
    first, _, step, *_ = log_of(run.path)
    assert re.match(r"held out \(\d units?\), step 0:  reward [\d.e-]+  length", first)
    assert re.match(r"step 2/2  \d:\d\d:\d\d left  reward ", step)
    assert "engine_gap" in step and "of the peak FLOP/s" in step  # the log has everything


@pytest.mark.parametrize("width", [60])
def test_the_live_line_fits_a_narrow_terminal(width: int, mm_train: Train, mm_workspace: Path) -> None:
    mm_train("pretrain", run="a")
    words = [
        "train", "--algo", "pretrain", "--from", "a", "--data", "tiny_rows.jsonl", "--backend", "cpu", "--max-steps", "12",
        "--global-batch-size", "2", "--eval-ratio", "0", "--run", "b", "--log-interval", "5",
    ]  # fmt: skip
    shown = on_a_terminal([sys.executable, "-m", "mm", *words], width)
    lines = [line.strip() for line in re.split(r"[\r\n]+", _ESCAPE.sub("", shown)) if line.strip()]
    live = [line for line in lines if "━" in line]
    assert live and all(len(line) <= width for line in (*live, *(line for line in lines if line.startswith("step "))))
    assert re.match(r"step 12/12 ━+ 0:00:00 left  loss [\d.]+", live[-1])
    steps = [line.split("  ")[0] for line in lines if re.match(r"step \d+/12  ", line)]
    assert steps == ["step 1/12", "step 5/12", "step 10/12", "step 12/12"]


def on_a_terminal(words: list[str], width: int) -> str:
    """The output of a process whose terminal is that wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm"}
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, stdin=theirs, env=environ)
    os.close(theirs)
    read = bytearray()
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the process has closed its side
            break
        if not piece:
            break
        read += piece
    os.close(ours)
    assert process.wait() == 0, read.decode()
    return read.decode()
