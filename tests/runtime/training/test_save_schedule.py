"""Checkpoints by time: never more than some minutes or a tenth of the run apart, without cost for short runs or for results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from run_files import lines, weights
from sizes import sizes

import mm
from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.settings import TrainSettings
from mm.core.workspace import checkpoints, step_of
from mm.runtime.training import save_schedule
from mm.runtime.training.save_schedule import LEAST_SECONDS, SaveSchedule, is_due
from mm.testing.pytest_plugin import Train

SMALL = {**sizes(layers=1), "log_interval": 4, "learning_rate": 1e-2, "run": "a"}
pytestmark = pytest.mark.mm_train("pretrain", **SMALL)


@settings(deadline=None)
@given(
    minutes=st.none() | st.floats(0.1, 60), interval=st.none() | st.integers(1, 50), horizon=st.integers(1, 1000),
    steps=st.integers(0, 1000), seconds=st.floats(0, 7200), cost=st.floats(0, 600),
)  # fmt: skip
def test_when_a_checkpoint_is_due(
    minutes: float | None, interval: int | None, horizon: int, steps: int, seconds: float, cost: float
) -> None:
    due = is_due(
        TrainSettings(save_minutes=minutes, save_interval=interval), horizon, steps=steps, seconds=seconds, cost=cost
    )
    by_minutes = minutes is not None and seconds >= 60 * minutes
    by_tenths = minutes is not None and interval is None and steps >= horizon / 10
    assert due == (by_minutes or (by_tenths and seconds >= LEAST_SECONDS and cost <= seconds / 20))


class Clock(Callback):
    """A clock on which each step takes so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds, self.kept = 0.0, seconds, list[list[int]]()
        fake = type("time", (), {"monotonic": staticmethod(lambda: self.now)})
        monkeypatch.setattr(save_schedule, "time", fake)

    def on_step(self, run: TrainingView) -> None:
        self.now += self.seconds


def saved_steps(run: mm.core.workspace.RunFolder) -> list[int]:
    return [step_of(path) for path in checkpoints(run.checkpoints)]


@pytest.mark.parametrize(
    ("seconds", "options", "steps"),
    [
        (20.0, {}, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),  # each tenth
        (0.1, {}, [20]),  # a run of two seconds
        (400.0, {"save_interval": 20}, [3, 6, 9, 12, 15, 18, 20]),
        (400.0, {"save_minutes": "none"}, [20]),
        (1.0, {"save_minutes": 0.1, "save_interval": 19}, None),
    ],
)
def test_a_run_is_saved_at_the_tenths_and_at_the_minutes(
    seconds: float, options: dict[str, Any], steps: list[int] | None, mm_train: Train,
    mm_watchers: list[Callback], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    mm_watchers.append(Clock(monkeypatch, seconds))
    run = mm_train(max_steps=20, keep_checkpoints=99, background_save=False, **options)
    found = saved_steps(run)
    if steps is None:
        assert 19 in found and 20 in found and len(found) >= 4
    else:
        assert found == steps


def test_when_a_run_is_saved_does_not_change_it(
    mm_train: Train, mm_watchers: list[Callback], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Saved at moments of the clock, killed and resumed from one of them, it is the run that was saved once."""
    plain = mm_train(run="plain", max_steps=12, eval_ratio=0.3)
    mm_watchers.append(Clock(monkeypatch, 11.0))
    often = mm_train(max_steps=12, eval_ratio=0.3, keep_checkpoints=99, background_save=False)
    assert len(saved_steps(often)) > 3
    assert weights(often) == weights(plain) and lines(often) == lines(plain)
    for path in checkpoints(often.checkpoints)[2:]:
        path.rename(tmp_path / path.name)
    often.update_manifest({"state": "running"})  # as a kill leaves it
    resumed = mm_train(resume=True, max_steps=12, eval_ratio=0.3)
    assert weights(resumed) == weights(plain) and lines(resumed) == lines(plain)


def test_nothing_is_due_while_a_checkpoint_is_being_written() -> None:
    schedule = SaveSchedule(TrainSettings(save_minutes=1e-9), 100, 0)
    time.sleep(0.001)
    assert schedule.due(1)
    schedule.start(1)
    assert not schedule.due(2)
    schedule.finish(0.0)
    assert schedule.due(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "every 10 minutes, after each tenth of the run (12 steps), at the end; the newest 2 are kept"),
        ({"save_interval": 50, "keep_checkpoints": 2}, "every 50 steps, every 10 minutes, at the end; the newest 2 are kept"),
        ({"save_minutes": "none"}, "at the end; the newest 2 are kept"),
    ],
)
def test_the_plan_says_when_and_how_much(options: dict[str, Any], said: str, mm_workspace: Path) -> None:
    plan = mm.plan(
        "pretrain", arch="dense", preset="minimind2-small", data="classics:en", max_steps=120, backend="cpu", quiet=True,
        **options,
    )  # fmt: skip
    assert plan.values["saving"] == said and said in plan
    # two of 25.83M parameters of 4 bytes, thrice with AdamW's moments
    assert plan.values["disk"]["checkpoints"] == 2 * 3 * 4 * plan.values["parameters"]
