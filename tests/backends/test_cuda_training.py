"""Every algorithm on a card: in every compute type, compiled, and resumed. See docs/backends.md#on-nvidia-cards."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from on_card import ALGORITHMS, plugins, train
from rank_cases import prepare
from run_files import logged, series, weights

import mm
from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.core.workspace import RunFolder
from mm.runtime.devices.backend import Backend

pytestmark = pytest.mark.cuda

# of the losses on the card, in each type, to those of the CPU in float32; products of float32 are TF32 on a card
TOLERANCES = {"fp32": 5e-3, "bf16": 5e-2, "fp16": 1e-2}
# the scale that a test begins with, far too large, and the factor at each overflow
SCALE, BACKOFF = 2.0**24, 2.0**-6


@pytest.fixture(scope="module")
def workspace(card: Backend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the models that some algorithms start from."""
    folder = tmp_path_factory.mktemp("card")
    prepare(folder, ALGORITHMS)
    return folder


@pytest.fixture
def deterministic() -> Iterator[None]:
    """All that an exact resume on a card needs, besides CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True)
    yield
    torch.set_deterministic_debug_mode(before)


def check_metrics(run: RunFolder, steps: int) -> None:
    """The run has taken so many steps, learned in them, and all that it logged is finite."""
    lines = logged(run)
    assert lines[-1]["step"] == steps and run.manifest["state"] == "finished"
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert any(value > 0 for name in lines[0] if name.endswith("grad_norm") for value in series(run, name))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_trains_in_every_type(
    algo: str, dtype: str, card: Backend, workspace: Path, installed: PluginManager
) -> None:
    if dtype == "bf16" and card.default_dtype() == "fp16":
        pytest.skip("this card only emulates bfloat16")
    run = train(workspace, algo, f"{algo}-{dtype}", dtype=dtype)
    check_metrics(run, logged(run)[-1]["step"])
    spec = installed.get(AlgorithmSpec, algo)
    if spec.needs(spec.config() if spec.config else None).generates:
        return  # a product that is rounded differently may draw another token
    host = train(workspace, algo, f"{algo}-{dtype}-host", backend="cpu")
    first = 1 if dtype == "fp16" else None  # the later ones are those of other weights if a step was skipped
    expected = pytest.approx(series(host, "loss")[:first], rel=TOLERANCES[dtype], abs=TOLERANCES[dtype])
    assert series(run, "loss")[:first] == expected


class Scales(Callback):
    """The scale and the policy's weights before the first step and after each."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_start(self, run: TrainingView) -> None:
        self.on_step(run)

    def on_step(self, run: TrainingView) -> None:
        self.scales.append(run.scaler.get_scale())  # type: ignore[attr-defined]
        trained = [p for p in run.roles["policy"].model.parameters() if p.requires_grad]
        self.weights.append(torch.cat([p.detach().cpu().flatten() for p in trained]))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_fp16_skips_and_counts_steps_that_overflow(algo: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = functools.partial(torch.amp.GradScaler, init_scale=SCALE, backoff_factor=BACKOFF)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    watcher = Scales()
    monkeypatch.setattr("on_card.WATCHERS", [watcher])
    run = train(workspace, algo, f"{algo}-scaled", dtype="fp16", max_steps=6)
    skipped = [value == 1 for value in series(run, "overflow")]
    assert len(skipped) == 6 and 0 < sum(skipped) < 6, skipped
    assert watcher.scales == [SCALE * BACKOFF ** sum(skipped[:step]) for step in range(7)]
    roles = sum(name.endswith("grad_norm") for name in logged(run)[0])
    for step, was_skipped in enumerate(skipped):
        changed = not torch.equal(watcher.weights[step], watcher.weights[step + 1])
        assert not (was_skipped and changed and roles == 1), f"step {step + 1} was counted as skipped and changed the weights"
    assert not torch.equal(watcher.weights[0], watcher.weights[-1])


@pytest.mark.parametrize("case", ["sft", "sft with experts", "dpo", "grpo"])
def test_compiled_blocks_learn_the_same(case: str, workspace: Path) -> None:
    stem = case.replace(" ", "-")
    plain = train(workspace, case, f"{stem}-plain")
    compiled = train(workspace, case, f"{stem}-compiled", compile=True)
    assert not [note for note in compiled.manifest["notes"] if "compiled" in note], compiled.manifest["notes"]
    check_metrics(compiled, logged(plain)[-1]["step"])
    assert series(compiled, "loss")[0] == pytest.approx(series(plain, "loss")[0], rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(algo: str, workspace: Path, deterministic: None) -> None:
    options = {"dtype": "auto", "max_steps": 4}
    whole = train(workspace, algo, f"{algo}-whole", **options)
    train(workspace, algo, f"{algo}-cut", stop_after_steps=2, **options)
    cut = mm.train(algo, resume=True, run=f"{algo}-cut", workspace=workspace, plugins=plugins(), quiet=True)
    assert weights(whole) == weights(cut)
    assert logged(whole) == logged(cut)
