"""Roles beside the policy: where they begin, what they are trained with, and that a resume has them again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from run_files import series
from safetensors.torch import load_file
from torch import Tensor

import mm
from mm.contracts import Algorithm, Metrics, Totals
from mm.core.errors import UsageError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, Needs
from mm.runtime.nn.batch import Packed
from mm.runtime.nn.heads import linear_cross_entropy
from mm.testing import tiny_run
from mm.testing.pytest_plugin import Train


class Cast(Algorithm):
    """Next tokens for the policy, the value 1 for the critic; how far the policy has moved as a metric."""

    def counts(self, batch: Packed) -> dict[str, float]:
        return {"targets": float(batch.num_targets), "tokens": float(batch.num_tokens)}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        def nll(hidden: Tensor, weight: Tensor) -> Tensor:
            return linear_cross_entropy(hidden.index_select(0, batch.target_index), weight, batch.targets)

        def value(hidden: Tensor, weight: Tensor) -> Tensor:
            return (hidden @ weight.t()).squeeze(1).float()

        policy = self.models["policy"](batch, head=nll)
        with torch.no_grad():
            moved = self.models["reference"](batch, head=nll) - policy
        error = (self.models["critic"](batch, head=value) - 1).square().sum()
        loss = policy / max(1.0, totals["targets"]) + error / max(1.0, totals["tokens"])
        return loss, {"moved": (moved.detach(), 1.0), "value_error": (error.detach(), float(batch.num_tokens))}


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    needs = Needs(data="text", roles=("policy", "reference", "critic"), trainable=("policy", "critic"), value_heads=("critic",))
    yield AlgorithmSpec(name="cast", summary="Three roles.", target=f"{__name__}:Cast", needs=lambda config: needs)
    given = Needs(data="text", roles=("policy", "teacher"), user_provided=("teacher",))
    yield AlgorithmSpec(name="taught", summary="A teacher.", target=f"{__name__}:Cast", needs=lambda config: given)


pytestmark = pytest.mark.mm_train("cast", seed=3, log_interval=1)


def test_each_role_begins_and_learns_as_it_should(mm_train: Train, tmp_path: Path) -> None:
    run = mm_train(max_steps=4, critic_learning_rate=3e-3)
    moved, error = series(run, "moved"), series(run, "value_error")
    assert abs(moved[0]) < 1e-3 < moved[-1]  # the reference is the policy's start, and stays there
    assert error[0] == 1 and error[-1] < 0.8  # values are 0 at first
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    assert load_file(newest / "critic.safetensors")["lm_head.weight"].shape[0] == 1
    slow = mm_train(workspace=tmp_path / "slow", max_steps=4, critic_learning_rate=1e-6)
    assert series(slow, "value_error")[-1] > 0.9 and series(slow, "moved")[1] == moved[1]


def test_a_resume_has_every_role_again(mm_train: Train, plugins: PluginManager, tmp_path: Path) -> None:
    whole = mm_train(workspace=tmp_path / "whole", max_steps=4, run="a")
    mm_train(workspace=tmp_path / "cut", max_steps=4, run="a", stop_after_steps=2)
    cut = mm.train("cast", resume=True, run="a", workspace=tmp_path / "cut", plugins=plugins, quiet=True)
    assert series(cut, "moved") == series(whole, "moved") and series(cut, "value_error") == series(whole, "value_error")
    for name in ("model.safetensors", "critic.safetensors"):
        files = [next(run.checkpoints.glob("step-00000004")) / name for run in (whole, cut)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("named", [{}, {"reference_from": "base"}])
def test_a_resume_wants_the_same_reference(tmp_path: Path, named: dict[str, str]) -> None:
    """Whether it is what the policy began as or another model; which weights it has, not when they were written."""
    options = {"run": "full", "from_": "base", "max_steps": 4, "log_interval": 1, **named}
    tiny_run(tmp_path, "dpo", run="base")
    start = tiny_run(tmp_path, "dpo", stop_after_steps=2, **options)
    whole = tiny_run(tmp_path, "dpo", **options | {"run": "whole"})
    shutil.rmtree(tmp_path / "runs/base")
    tiny_run(tmp_path, "dpo", run="base", seed=3)
    before = (start.path / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=f"The reference of run full, {tmp_path}/runs/base/model, has changed since"):
        mm.train("dpo", resume=True, run="full", workspace=tmp_path, quiet=True)
    assert (start.path / "manifest.json").read_bytes() == before
    shutil.rmtree(tmp_path / "runs/base")
    tiny_run(tmp_path, "dpo", run="base")
    again = mm.train("dpo", resume=True, run="full", workspace=tmp_path, quiet=True)
    assert series(again, "chosen_drift") == series(whole, "chosen_drift")


def test_a_role_may_come_from_another_run(mm_train: Train) -> None:
    first = mm_train(run="first")
    second = mm_train(run="second", reference_from="first")
    assert abs(series(second, "moved")[0]) > 1e-3
    assert 'reference]\nfrom = "first"' in (second.path / "run.toml").read_text()
    assert first.manifest["state"] == second.manifest["state"] == "finished"


def test_what_does_not_fit_is_refused(mm_train: Train) -> None:
    with pytest.raises(UsageError, match="taught needs a teacher: pass --teacher-from"):
        mm_train("taught")
    with pytest.raises(UsageError, match="No such option: --teacher-from"):
        mm_train(teacher_from="x")
    with pytest.raises(UsageError, match="No such option: --reward"):
        mm_train(reward="exact")
