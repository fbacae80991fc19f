"""What holds for every algorithm that draws nothing: an exact resume, and two ranks that learn what one learns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import two_ranks

import mm
from mm.core.config.composition import Composition
from mm.core.layers import argument_layer
from mm.core.plugins import PluginManager
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.runs import api, session
from mm.testing import tiny_run

CHATS = [
    [
        {"role": "user", "content": f"say {n}"},
        {"role": "assistant", "content": f"<think>\n{n}\n</think>\n" + f"number {n} " * (1 + n % 4)},
    ]
    for n in range(9)
]  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [{"messages": chat} for chat in CHATS],
    "preference": [{"chosen": c, "rejected": [c[0], {"role": "assistant", "content": f"no {i}"}]} for i, c in enumerate(CHATS)],
    "unpaired": [{"prompt": c[0]["content"], "completion": c[1]["content"], "label": i % 3 > 0} for i, c in enumerate(CHATS)],
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "reason": ("reason", "chat", {}),
    "distill": ("distill", "chat", {"teacher_from": "start"}),
    "dpo": ("dpo", "preference", {}),
    "cached dpo": ("dpo", "preference", {"cache_reference": True}),
    "adapted dpo": ("dpo", "preference", {"adapter": "lora"}),
    "orpo": ("dpo", "preference", {"loss_type": "orpo"}),
    "kto": ("kto", "unpaired", {}),
    "adapted cached kto": ("kto", "unpaired", {"adapter": "lora", "cache_reference": True}),
    "lora": ("lora", "chat", {"lora_dropout": 0.2}),
}
SMALL = {
    "max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-2, "micro_batch_tokens": 48, "threads": 1, "log_interval": 1,
    "dense_hidden_size": 16, "dense_num_hidden_layers": 2, "dense_num_attention_heads": 2, "dense_num_key_value_heads": 1,
}  # fmt: skip


def start(workspace: Path) -> None:
    """The run that a teacher comes from."""
    tiny_run(workspace, "sft", rows=ROWS["chat"], run="start", **{**SMALL, "max_steps": 1, "seed": 1})


def train(workspace: Path, case: str, name: str, **options: Any) -> RunFolder:
    algo, kind, own = CASES[case]
    return tiny_run(workspace, algo, rows=ROWS[kind], run=name, **SMALL, **own, **options)


def logged(run: RunFolder) -> list[dict[str, float]]:
    lines = [json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if "learning_rate" in line]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every")
    start(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(case: str, workspace: Path) -> None:
    stem = case.replace(" ", "-")
    whole = train(workspace, case, f"{stem}-whole", eval_ratio=0.2)
    train(workspace, case, f"{stem}-cut", eval_ratio=0.2, stop_after_steps=2)
    for file in (workspace / ".mm/reference").glob("*"):  # a cache may go at any time
        file.unlink()
    cut = mm.train(CASES[case][0], resume=True, run=f"{stem}-cut", workspace=workspace, quiet=True)
    assert (whole.model / "model.safetensors").read_bytes() == (cut.model / "model.safetensors").read_bytes()
    assert logged(whole) == logged(cut)


# ---- two ranks


def first_gradients(workspace: Path, case: str) -> tuple[dict[str, torch.Tensor], int]:
    """Those of the first step, before clipping, and the micro-batches that this rank had."""
    algo, kind, own = CASES[case]
    # dropout draws for what it is given, so it alone depends on who has which rows
    own = {name: value for name, value in own.items() if name != "lora_dropout"}
    (workspace / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]), encoding="utf-8")
    given = {"arch": "dense", "preset": "tiny", "tokenizer": workspace / "tiny_tokenizer", "data": workspace / f"{kind}.jsonl"}
    layers = [argument_layer({
        "algo": algo, "run": "unused", **SMALL, **given, **own, "global_batch_size": 7, "eval_ratio": 0.0, "max_length": 128,
        "dtype": "fp32", "backend": "cpu",
    })]  # fmt: skip
    plugins = PluginManager.discover(environ={})
    resolved = api.new_run(Composition(plugins, layers), Workspace(workspace), lambda line: None)
    trainer = session.build(plugins, resolved.run, Workspace(workspace), say=lambda line: None).trainer
    trainer.state.updates.apply = lambda step, horizon: {}  # type: ignore[method-assign]  # keep the gradients
    with torch.no_grad():  # a policy that is no longer the reference, whose B is no longer zero
        for number, (_, parameter) in enumerate(trainer.state.roles["policy"].model.named_parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        (units,) = trainer.state.algorithm.prepare(trainer.state.feed.next())
    trainer.train_step(units)
    parameters = trainer.state.roles["policy"].model.named_parameters()
    return {name: p.grad for name, p in parameters if p.grad is not None}, len(trainer.state.micro_batches(units))


def rank_main(folder: str) -> None:
    """What each rank does, in a process of its own."""
    workspace = Path(folder)
    torch.set_num_threads(1)
    found = {case: first_gradients(workspace, case) for case in CASES}
    torch.save(found, workspace / f"rank{os.environ['RANK']}.pt")


@pytest.mark.slow
def test_two_ranks_have_one_ranks_gradients(tmp_path: Path) -> None:
    start(tmp_path)
    with two_ranks("test_every_algorithm", "rank_main", tmp_path):
        pass
    ranks = [torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1)]
    for case in CASES:
        alone, micro = first_gradients(tmp_path, case)
        for found, own in (rank[case] for rank in ranks):
            assert found.keys() == alone.keys() and own < micro
            for name, expected in alone.items():
                assert found[name].allclose(expected, atol=2e-6, rtol=1e-4), (case, name)
