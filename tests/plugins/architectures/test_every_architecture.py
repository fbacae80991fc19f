"""Every algorithm with every architecture: trained, resumed, measured, and its model used and exported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from run_files import held_out, lines, logged
from safetensors.torch import load_file
from training_rows import DATA

import mm
from mm.core.records import AlgorithmSpec, Needs
from mm.testing import tiny_run

PLUGINS = drawing.plugins()
SIZES = {"dense": {"arch": "dense", **drawing.SMALL}, "moe": drawing.SMALL_EXPERTS}
ALGORITHMS = [spec.name for spec in PLUGINS.specs(AlgorithmSpec) if PLUGINS.owner(spec).distribution == "minimind-ascend"]
DRAWN = {"num_generations": 3, "max_new_tokens": 8, "reward": "vowels"}
OWN: dict[str, dict[str, Any]] = {"distill": {"teacher_from": "start"}, "agent": {**DRAWN, **drawing.AGENT}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run of each architecture to begin from; the teacher is of the other kind than the moe student."""
    folder = tmp_path_factory.mktemp("every-architecture")
    for arch, size in SIZES.items():
        run = "start" if arch == "dense" else "start-moe"
        tiny_run(folder, "pretrain", rows=DATA["text"], run=run, max_steps=1, **size)
    return folder


def needs_of(name: str) -> Needs:
    spec = PLUGINS.get(AlgorithmSpec, name)
    return spec.needs(spec.config() if spec.config else None)


def cases() -> list[Any]:
    """Experts in the default suite, for dense models are what most other tests train; of grpo's kin grpo stands for all."""
    every = [(arch, name) for arch in ("moe", "dense") for name in ALGORITHMS]
    slow = {(arch, name) for arch, name in every if arch == "dense" or name in ("rloo", "reinforce-pp", "spo")}
    return [pytest.param(*case, id="-".join(case), marks=pytest.mark.slow if case in slow else ()) for case in every]


@pytest.mark.parametrize(("arch", "name"), cases())
def test_it_trains_and_its_model_is_used(arch: str, name: str, workspace: Path) -> None:
    start, needs = "start" if arch == "dense" else "start-moe", needs_of(name)
    own = OWN.get(name, DRAWN if needs.generates else {})
    options = {"log_interval": 1, "global_batch_size": 3, "eval_ratio": 0.3, "learning_rate": 1e-3, **own}
    run = f"{arch}-{name}"
    tiny_run(workspace, name, plugins=PLUGINS, rows=DATA[needs.data], from_=start, run=run, stop_after_steps=1, **options)
    done = mm.train(name, resume=True, run=run, workspace=workspace, plugins=PLUGINS, quiet=True)
    assert (done.manifest["state"], done.manifest["step"]) == ("finished", done.manifest["steps"])
    assert all(math.isfinite(value) for line in lines(done) for value in line.values())
    steps = logged(done)
    assert len(steps) == 2 and held_out(done)
    roles = [f"{role}/" for role in needs.trainable] if len(needs.trainable) > 1 else [""]
    routed = {f"{role}router/{figure}" for role in roles for figure in ("load", "entropy", "dead")}
    for line in steps:
        assert (routed <= line.keys()) if arch == "moe" else not any("router" in figure for figure in line)
        assert all(line[f"{role}grad_norm"] > 0 for role in roles)
    before, after = (load_file(workspace / f"runs/{name}/model/model.safetensors") for name in (start, run))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert before.keys() == after.keys() and any("experts" in name or "mlp" in name for name in moved)
    model = mm.load(done.model, backend="cpu", dtype="fp32", workspace=workspace)
    said = mm.generate(model, "say one", max_new_tokens=4, temperature=0)
    exported = mm.convert(done.model, workspace / f"exported-{run}", to="qwen2-moe" if arch == "moe" else "llama")
    again = mm.load(exported, backend="cpu", dtype="fp32", workspace=workspace)
    assert mm.generate(again, "say one", max_new_tokens=4, temperature=0).ids == said.ids
    back = load_file(mm.convert(exported, workspace / f"back-{run}") / "model.safetensors")
    assert all(torch.equal(back[name], after[name]) for name in after)
