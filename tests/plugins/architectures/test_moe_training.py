"""A mixture of experts through training, resuming, generation and conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_files import logged, series, weights
from safetensors.torch import load_file

import mm
from mm.core.plugins import PluginManager
from mm.testing import tiny_run
from mm.testing.pytest_plugin import CommandLine

SMALL = {"arch": "moe", "moe_hidden_size": 32, "moe_num_hidden_layers": 2, "moe_intermediate_size": 32, "learning_rate": 1e-2}


@pytest.mark.parametrize(("preset", "format"), [("tiny", "qwen2-moe"), ("tiny3", "qwen3-moe")])
def test_pretrain_sft_generate_convert(preset: str, format: str, plugins: PluginManager, tmp_path: Path) -> None:
    options = {**SMALL, "preset": preset, "plugins": plugins, "max_steps": 6, "log_interval": 1, "optimizer": "muon"}
    base = tiny_run(tmp_path, "pretrain", run="base", **options)
    losses = series(base, "loss")
    assert losses[-1] < losses[0]
    for row in logged(base):
        assert 1 <= row["router/load"] <= 4
        assert 0 < row["router/entropy"] < 1.39  # ln 4
        assert 0 <= row["router/dead"] <= 8
    tuned = tiny_run(tmp_path, "sft", run="tuned", from_=str(base.path), plugins=plugins)
    one, two = (load_file(run.model / "model.safetensors")["model.layers.1.mlp.experts.down_proj"] for run in (base, tuned))
    assert one.shape == (4, 32, 32)
    assert not torch.equal(one, two)
    model = mm.load(str(tuned.model), backend="cpu", plugins=plugins)
    text = mm.generate(model, "hello", max_new_tokens=6, temperature=0)
    out = mm.convert(str(tuned.model), tmp_path / "out", to=format, plugins=plugins)
    again = mm.generate(mm.load(str(out), backend="cpu", plugins=plugins), "hello", max_new_tokens=6, temperature=0)
    assert text.ids == again.ids


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    options = {**SMALL, "preset": "tiny", "max_steps": 4, "optimizer": "muon"}
    whole = tiny_run(tmp_path, "pretrain", run="whole", **options)
    tiny_run(tmp_path, "pretrain", run="stopped", stop_after_steps=2, **options)
    resumed = tiny_run(tmp_path, "pretrain", run="stopped", resume=True, **options)
    assert weights(resumed) == weights(whole)


def test_plan_and_info_tell_the_active_parameters(mm_cli: CommandLine, tmp_path: Path) -> None:
    plan = mm.plan("pretrain", arch="moe", preset="minimind3-moe", data="classics:en", backend="cpu", workspace=tmp_path)
    assert "198,416,640, 63,936,768 active per token" in str(plan)
    run = tiny_run(tmp_path, "pretrain", run="base", **SMALL, preset="tiny", max_steps=1)
    assert "active per token" in mm_cli("info", run.model).out
    facts = json.loads(mm_cli("info", run.model, "--json").out)
    idle = 2 * 2 * 3 * 32 * 32  # layers, experts, matrices
    assert facts["parameters"] - facts["active_parameters"] == idle
