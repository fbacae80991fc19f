"""A run that an earlier layout of the package began goes on with this one.

`data/run-before-floors` was made by the tree of the commit "What breaks a stage off is told apart from running them": a run
of 20 steps, stopped after the fifth, whose patience of 4 evaluations without a gain of `min_delta` ends it at step 10. Its
checkpoint names callbacks by the paths that their modules had then.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mm
from mm.contracts import Callback
from mm.core.workspace import RunFolder
from mm.runtime.training.callback_states import restore_callbacks

OLD = Path(__file__).parents[2] / "data" / "run-before-floors"


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    workspace = tmp_path / "workspace"
    shutil.copytree(OLD, workspace)
    monkeypatch.chdir(workspace)
    return mm.train("pretrain", resume=True, run="old", quiet=True, workspace=workspace)


def test_it_ends_where_the_old_tree_ended_it(resumed: RunFolder) -> None:
    # had the patience been counted anew, the run would have gone on to step 14
    assert resumed.manifest["step"] == 10
    assert resumed.manifest["stop_reason"].startswith("early stopping: nothing better than held-out loss")


def test_its_weights_are_those_of_the_old_tree(resumed: RunFolder) -> None:
    expected, found = load_file(OLD / "finished.safetensors"), load_file(resumed.model / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():  # made on another machine perhaps, whose sums round otherwise
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_its_metrics_are_those_of_the_old_tree(resumed: RunFolder) -> None:
    expected, found = lines_of(OLD / "finished.jsonl"), lines_of(resumed.path / "metrics.jsonl")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for new, old in zip(found, expected, strict=True):
        assert new.keys() == old.keys()
        losses = new.keys() & {"loss", "held_out/loss"}
        assert [new[name] for name in losses] == pytest.approx([old[name] for name in losses], rel=1e-4)


class Counts(Callback):
    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


class Renamed(Counts):
    name = "Counts"


@pytest.mark.parametrize("key", ["Counts#0", "some.former.module.Counts#0"])
def test_a_state_is_found_by_its_name_and_by_a_former_path(key: str) -> None:
    callback = Counts()
    assert restore_callbacks([callback], {key: {"seen": 3}}) == []
    assert callback.seen == 3


@pytest.mark.parametrize("key", ["Counts#0", "some.former.module.Counts#0"])
def test_a_name_outlives_its_class(key: str) -> None:
    callback = Renamed()
    assert restore_callbacks([callback], {key: {"seen": 3}}) == []
    assert callback.seen == 3


def test_several_of_one_name_keep_their_order() -> None:
    callbacks: list[Callback] = [Counts(), Counts()]
    assert restore_callbacks(callbacks, {"old.Counts#1": {"seen": 2}, "old.Counts#0": {"seen": 1}}) == []
    assert [callback.seen for callback in callbacks] == [1, 2]  # type: ignore[attr-defined]


def test_what_is_not_found_is_said() -> None:
    lines = restore_callbacks([Counts()], {"gone.Other#0": {"seen": 3}, "gone.Stateless#0": {}})
    assert lines == [
        "callback Counts#0: the checkpoint has no state for it; it starts as in a new run",
        "callback gone.Other#0: its state in the checkpoint belongs to no callback of this run",
    ]
