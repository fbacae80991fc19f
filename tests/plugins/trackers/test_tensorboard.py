"""`--tracker tensorboard`, read back with TensorBoard's own reader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from run_files import lines
from sizes import sizes

from mm.contracts import Callback, TrainingView
from mm.core.errors import UsageError
from mm.core.workspace import RunFolder
from mm.testing.pytest_plugin import Train

pytestmark = pytest.mark.mm_train(
    "pretrain", log_interval=1, max_steps=5, eval_ratio=0.3, eval_interval=2, tracker="tensorboard", run="a", **sizes(layers=1)
)


def curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """metric -> its points, as TensorBoard would draw them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def points(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """The same out of metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines(run):
        for name in line.keys() - {"step"}:
            found.setdefault(name, []).append((line["step"], pytest.approx(line[name], rel=1e-6)))
    return found


def test_the_curves_are_the_metrics(mm_train: Train) -> None:
    pytest.importorskip("tensorboard")
    run = mm_train()
    found = curves(run)
    assert found == points(run)
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in found["held_out/loss"]] == [0, 2, 4, 5]


class Crash(RuntimeError):
    pass


class Crashes(Callback):
    def on_step(self, run: TrainingView) -> None:
        if run.step == 4:
            raise Crash


def test_a_resumed_run_goes_on_in_the_same_curves(mm_train: Train, mm_watchers: list[Callback]) -> None:
    """The steps after the last checkpoint were drawn before the crash; they are made, and drawn, once more."""
    pytest.importorskip("tensorboard")
    mm_watchers.append(Crashes())
    with pytest.raises(Crash):
        mm_train(save_interval=2)
    mm_watchers.clear()
    run = mm_train(resume=True)
    assert len(list((run.path / "tensorboard").iterdir())) == 2
    whole = mm_train(run="whole")
    assert curves(run) == curves(whole) == points(whole)


def test_without_the_package_nothing_is_begun(mm_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UsageError, match=r"--tracker tensorboard: .*tensorboard.*Install it: pip install .*\[trackers\]"):
        mm_train()
    assert not (tmp_path / "runs").exists()
