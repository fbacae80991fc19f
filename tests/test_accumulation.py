"""A step in many micro-batches is the step in one, under every algorithm, through the trainer itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from test_every_algorithm import ROWS
from torch import Tensor

from mm.core.config.composition import Composition
from mm.core.layers import argument_layer
from mm.core.workspace import Workspace
from mm.runtime.runs import api, session
from mm.runtime.training.trainer import Trainer
from mm.testing import tiny_run, tiny_tokenizer

PLUGINS = drawing.plugins()
DRAWN = {"num_generations": 3, "max_new_tokens": 8, "reward": "vowels", "global_batch_size": 3}
TWICE = {**DRAWN, "passes": 2, "mini_batches": 2}
EXPERTS = {**drawing.SMALL_EXPERTS, "moe_router_aux_loss_coef": 0.5}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("text", {}),
    "pretrain with experts": ("text", EXPERTS),
    "sft": ("chat", {}),
    "sft with experts": ("chat", EXPERTS),
    "lora": ("chat", {}),
    "lora with experts": ("chat", {**EXPERTS, "lora_target": ["experts.*", "q_proj"]}),
    "reason": ("chat", {}),
    "distill": ("chat", {"teacher_from": "teacher"}),
    "dpo": ("preference", {}),
    "dpo with experts": ("preference", {**EXPERTS, "loss_type": "ipo"}),
    "kto": ("unpaired", {}),
    "kto with a cache": ("unpaired", {"cache_reference": True}),
    "grpo": ("prompt", TWICE),
    "grpo with experts": ("prompt", {**DRAWN, **EXPERTS}),
    "grpo with an adapter": ("prompt", {**DRAWN, "adapter": "lora"}),
    "rloo": ("prompt", DRAWN),
    "reinforce-pp": ("prompt", DRAWN),
    "ppo": ("prompt", TWICE),
    "ppo with experts": ("prompt", {**DRAWN, **EXPERTS}),
    "ppo with adapters": ("prompt", {**DRAWN, "adapter": "lora", "critic_adapter": "lora"}),
    "spo": ("prompt", DRAWN),
    "spo with an adapter": ("prompt", {**DRAWN, "adapter": "lora"}),
    "agent": ("episode", {**DRAWN, **drawing.AGENT}),
    "agent with an adapter": ("episode", {**DRAWN, **drawing.AGENT, "adapter": "lora"}),
}
DATA: dict[str, list[dict[str, Any]]] = {
    **ROWS, "text": [{"text": f"number {n} " * (1 + n % 5)} for n in range(9)], "prompt": drawing.PROMPTS,
    "episode": drawing.EPISODES,
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulation")
    for kind, rows in DATA.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    tiny_tokenizer().save(folder / "tokenizer")
    tiny_run(folder, "sft", rows=ROWS["chat"], run="teacher", max_steps=1, seed=1, threads=1)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer_of(workspace: Path, case: str, budget: int) -> Trainer:
    """The trainer of a run, whose policy is no longer what it began as."""
    kind, own = CASES[case]
    size = {} if "arch" in own else {"arch": "dense", **drawing.SMALL}
    layer = argument_layer({
        "algo": case.split()[0], "run": "unused", "preset": "tiny", "global_batch_size": 5, **size, **own,
        "tokenizer": workspace / "tokenizer", "data": workspace / f"{kind}.jsonl", "eval_ratio": 0.0, "max_length": 512,
        "dtype": "fp32", "backend": "cpu", "threads": 1, "micro_batch_tokens": budget,
    })  # fmt: skip
    resolved = api.new_run(Composition(PLUGINS, [layer]), Workspace(workspace), lambda line: None)
    trainer = session.build(PLUGINS, resolved.run, Workspace(workspace), say=lambda line: None).trainer
    with torch.no_grad():
        for role in (r for r in trainer.state.roles.values() if r.trainable):
            for number, parameter in enumerate(role.model.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter.add_(noise * 0.02)
    return trainer


def gradients(workspace: Path, case: str, budget: int) -> tuple[dict[str, Tensor], int]:
    """Those of the last mini-batch of the first global batch, and how many micro-batches it was cut into."""
    trainer = trainer_of(workspace, case, budget)
    trainer.state.updates.apply = lambda step, horizon: {}  # type: ignore[method-assign]  # keep the gradients
    with torch.no_grad():
        units = trainer.state.algorithm.prepare(trainer.state.feed.next())[-1]
    trainer.train_step(units)
    trained = {name: role.model.named_parameters() for name, role in trainer.state.roles.items() if role.trainable}
    found = {f"{role}.{name}": p.grad for role, named in trained.items() for name, p in named if p.grad is not None}
    return found, len(trainer.state.micro_batches(units))


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=pytest.mark.slow if case in ("rloo", "reinforce-pp", "spo") else ()) for case in CASES
])  # fmt: skip
def test_many_micro_batches_are_one_batch(case: str, workspace: Path) -> None:
    whole, one = gradients(workspace, case, 10**6)
    cut, many = gradients(workspace, case, 1)
    assert one == 1 and many >= 3
    assert whole.keys() == cut.keys() and sum(bool(g.any()) for g in whole.values()) > len(whole) * 0.6
    for name, expected in whole.items():
        torch.testing.assert_close(cut[name], expected, atol=3e-6, rtol=3e-4, msg=lambda text, n=name: f"{n}: {text}")
