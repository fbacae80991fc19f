"""Trainings in float64 that any number of ranks takes alike, with copies of the model or with parts of it; and what they did."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from safetensors.torch import load_file
from sizes import sizes
from torch import nn
from training_rows import DATA

from mm.backends.cpu import probe
from mm.backends.cpu.backend import CpuBackend
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.core.workspace import RunFolder
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Unit
from mm.runtime.training.distributed import World
from mm.runtime.training.trainer import Trainer
from mm.testing import plugin_manager, tiny_run

TINY = {"threads": 1, "log_interval": 1, "learning_rate": 1e-3, "max_steps": 3, "eval_ratio": 0.2, "eval_interval": 2}
LEARNING = {**TINY, "global_batch_size": 5, "micro_batch_tokens": 48, "max_length": 64}
DRAWING = {
    **TINY, "num_generations": 4, "max_new_tokens": 6, "reward": "vowels", "global_batch_size": 3, "micro_batch_tokens": 60,
    "eval_interval": 100,
}  # fmt: skip
TWICE = {"passes": 2, "mini_batches": 3, "max_steps": 7}
DENSE = {"arch": "dense", **sizes()}
EXPERTS = {"arch": "moe", "moe_router_aux_loss_coef": 0.5, **sizes("moe")}
# the algorithm is the first word of a case
CASES: dict[str, dict[str, Any]] = {
    "pretrain": {}, "sft": {}, "sft of one row": {"global_batch_size": 1}, "sft with dropout": {"dropout": 0.2},
    "sft recomputed": {"activation_checkpointing": True}, "sft untied": {"dense_tie_word_embeddings": False},
    "sft with experts": EXPERTS, "pretrain with experts": EXPERTS,
    "lora": {}, "lora of experts": {**EXPERTS, "lora_target": ["mlp.*", "q_proj"]},
    "dpo": {}, "dpo cached": {"cache_reference": True}, "dpo adapted": {"adapter": "lora"},
    "dpo adapted and cached": {"adapter": "lora", "cache_reference": True}, "dpo with experts": EXPERTS,
    "dpo by orpo": {"loss_type": "orpo"}, "dpo by simpo": {"loss_type": "simpo"}, "kto": {}, "kto adapted": {"adapter": "lora"},
    "distill": {"teacher_from": "start"}, "reason": {},
    "grpo": {}, "grpo in mini-batches": {**TWICE, "loss_type": "dapo", "dynamic_sampling": True}, "grpo with experts": EXPERTS,
    "grpo of one prompt": {"global_batch_size": 1}, "grpo adapted": {"adapter": "lora"}, "grpo evaluated": {"eval_interval": 2},
    "reinforce-pp": {"mini_batches": 2}, "rloo": {}, "ppo": {**TWICE, "num_generations": 2, "kl_target": 0.1},
    "ppo with experts": {**EXPERTS, "num_generations": 2}, "spo": {"num_generations": 1, "global_batch_size": 5},
    "spo for all prompts": {"num_generations": 2, "value_tracker": "global"},
    "agent": {**drawing.AGENT, "micro_batch_tokens": 1000, "max_steps": 2},
}  # fmt: skip
KINDS = {
    "pretrain": "text", "sft": "chat", "lora": "chat", "distill": "chat", "reason": "chat", "dpo": "preference",
    "kto": "unpaired", "agent": "episode",
}  # fmt: skip
# the way in which ranks train together, and the setting of it
WAYS = {"shared": "ddp", "ddp": "ddp", "fsdp": "fsdp"}
# float32 tables and fields are the same on any number of ranks; all that is summed is float64
TOLERANCE = 1e-10


class Wide(Backend):
    """To be put before a chip's class: every model is float64 from the moment that it is placed there."""

    def fuse(self, module: nn.Module) -> list[str]:
        found = super().fuse(module)
        module.double()
        return found


class WideBackend(Wide, CpuBackend):
    """A CPU in float64."""


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    """wide."""
    yield BackendSpec(name="wide", summary="float64.", target=f"{__name__}:WideBackend", probe=probe, priority=-1)


def plugins(*modules: str) -> PluginManager:
    """Everything that is installed, the reward, the backend, and these modules."""
    return plugin_manager("drawing", __name__, *modules)


def options_of(case: str, workspace: Path) -> dict[str, Any]:
    """The settings of a case."""
    algo = case.split()[0]
    kind = KINDS.get(algo, "prompt")
    base = LEARNING if kind not in ("prompt", "episode") else DRAWING
    given = {"rows": DATA[kind], "run": case.replace(" ", "-"), **DENSE, **base, **CASES[case]}
    if given["arch"] == "moe":
        given = {name: value for name, value in given.items() if not name.startswith("dense")}
    if algo == "agent":
        given = {name: value for name, value in given.items() if not name.startswith("dense") and name != "arch"}
        given["from_"] = workspace / "caller"
    return given


def prepare(workspace: Path, cases: Iterable[str]) -> None:
    """The models that some cases start from."""
    workspace.mkdir(exist_ok=True)
    if any(case.startswith("distill") for case in cases):
        tiny_run(workspace, "sft", rows=DATA["chat"], run="start", **{**LEARNING, "max_steps": 1, "seed": 1}, **sizes())
    if "agent" in cases:
        (workspace / "caller").symlink_to(drawing.caller(workspace).model)


def run_cases(folder: str, way: str, *cases: str) -> None:
    """Train each case as this rank, in float64."""
    for case in cases:
        train(Path(folder), case, way, backend="wide")


def train(workspace: Path, case: str, way: str, *modules: str, **options: Any) -> RunFolder:
    """Train a case as this rank, and write down what it learns. `options` are further settings, `modules` further plugins."""
    given = {**options_of(case, workspace), "parallel": WAYS[way], **options}
    with recorded(workspace, given["run"]), summed(way):
        return tiny_run(workspace, case.split()[0], plugins=plugins(*modules), **given)


@contextmanager
def summed(way: str) -> Iterator[None]:
    """Inside the block gradients are summed in this way: "ddp" is the wrapper that cards have, and several machines."""
    own = World.one_machine
    if way == "ddp":
        World.one_machine = property(lambda self: False)  # type: ignore[assignment]
    try:
        yield
    finally:
        World.one_machine = own  # type: ignore[method-assign]


@contextmanager
def recorded(workspace: Path, run: str) -> Iterator[None]:
    """Write down what this rank learns in each step inside the block, in `RUN.RANK.jsonl`."""
    train_step = Trainer.train_step
    path = workspace / f"{run}.{os.environ.get('RANK', '0')}.jsonl"

    def keep(self: Trainer, units: list[Unit]) -> None:
        step = self.state.step
        train_step(self, units)
        known = [[unit.row_index, *(s.ids.tolist() for s in unit.sequences)] for unit in units]
        with path.open("a") as file:
            file.write(json.dumps([step, known]) + "\n")

    Trainer.train_step = keep  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.train_step = train_step  # type: ignore[method-assign]


def learned(workspace: Path, run: str) -> list[list[Any]]:
    """The units of each step on all ranks, in an order that does not depend on the ranks."""
    steps: dict[int, list[Any]] = {}
    for path in workspace.glob(f"{run}.*.jsonl"):
        for step, units in map(json.loads, path.read_text().splitlines()):
            steps.setdefault(step, []).extend(units)
    assert sorted(steps) == [*range(len(steps))]
    return [sorted(steps[step]) for step in sorted(steps)]


def logs(workspace: Path, run: str) -> list[dict[str, float]]:
    """The lines of metrics, without what depends on the machine, on float32 of the engine, or on how a step is cut."""
    left_out = ("seconds", "engine_gap", "engine_gap_max", "router/load", "router/dead", "router/entropy")
    text = (workspace / f"runs/{run}/metrics.jsonl").read_text()
    return [{n: v for n, v in json.loads(line).items() if not n.endswith(left_out)} for line in text.splitlines()]


def model(workspace: Path, run: str, folder: str = "model") -> dict[str, torch.Tensor]:
    """The finished model of a run, or another one in its folder."""
    return load_file(workspace / f"runs/{run}/{folder}/model.safetensors")


def assert_equal(one: Path, several: Path, run: str, tolerance: float = TOLERANCE, *, other: str = "") -> None:
    """The same units in each step, the same metrics, the same model. `other` is the run's name in the second workspace."""
    assert learned(several, other or run) == learned(one, run) and learned(one, run), other or run
    first, second = logs(one, run), logs(several, other or run)
    if other:  # a run that stops is evaluated there too
        first, second = ([line for line in lines if "learning_rate" in line] for lines in (first, second))
    assert [line.keys() for line in first] == [line.keys() for line in second], run
    for line, found in zip(first, second, strict=True):
        for figure, value in line.items():  # a meter adds in float32
            assert found[figure] == pytest.approx(value, rel=1e-5, abs=max(1e-6, tolerance)), (other or run, figure)
        assert all(line[figure] for figure in line if figure.endswith("grad_norm")), run
    assert_near(model(several, other or run), model(one, run), tolerance, other or run)


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float, run: str) -> None:
    """Each tensor is the expected one, within an absolute difference."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0, msg=lambda text, n=name: f"{run}, {n}: {text}")
