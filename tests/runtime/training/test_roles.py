"""Roles beside the policy: where they begin, what they are trained with, and that a resume has them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
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
from mm.testing import plugin_manager, tiny_run


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


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return plugin_manager(__name__)


def train(plugins: PluginManager, folder: Path, **options: Any) -> Any:
    return tiny_run(folder, "cast", plugins=plugins, threads=1, seed=3, log_interval=1, **options)


def logged(run: Any, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line and "learning_rate" in line]


def test_each_role_begins_and_learns_as_it_should(plugins: PluginManager, tmp_path: Path) -> None:
    run = train(plugins, tmp_path, max_steps=4, critic_learning_rate=3e-3)
    moved, error = logged(run, "moved"), logged(run, "value_error")
    assert abs(moved[0]) < 1e-3 < moved[-1]  # the reference is the policy's start, and stays there
    assert error[0] == 1 and error[-1] < 0.8  # values are 0 at first
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    assert load_file(newest / "critic.safetensors")["lm_head.weight"].shape[0] == 1
    slow = train(plugins, tmp_path / "slow", max_steps=4, critic_learning_rate=1e-6)
    assert logged(slow, "value_error")[-1] > 0.9 and logged(slow, "moved")[1] == moved[1]


def test_a_resume_has_every_role_again(plugins: PluginManager, tmp_path: Path) -> None:
    whole = train(plugins, tmp_path / "whole", max_steps=4, run="a")
    train(plugins, tmp_path / "cut", max_steps=4, run="a", stop_after_steps=2)
    cut = mm.train("cast", resume=True, run="a", workspace=tmp_path / "cut", plugins=plugins, quiet=True)
    assert logged(cut, "moved") == logged(whole, "moved") and logged(cut, "value_error") == logged(whole, "value_error")
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
    assert logged(again, "chosen_drift") == logged(whole, "chosen_drift")


def test_a_role_may_come_from_another_run(plugins: PluginManager, tmp_path: Path) -> None:
    first = train(plugins, tmp_path, run="first")
    second = train(plugins, tmp_path, run="second", reference_from="first")
    assert abs(logged(second, "moved")[0]) > 1e-3
    assert 'reference]\nfrom = "first"' in (second.path / "run.toml").read_text()
    assert first.manifest["state"] == second.manifest["state"] == "finished"


def test_what_does_not_fit_is_refused(plugins: PluginManager, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="taught needs a teacher: pass --teacher-from"):
        tiny_run(tmp_path, "taught", plugins=plugins)
    with pytest.raises(UsageError, match="No such option: --teacher-from"):
        train(plugins, tmp_path, teacher_from="x")
    with pytest.raises(UsageError, match="No such option: --reward"):
        train(plugins, tmp_path, reward="exact")
