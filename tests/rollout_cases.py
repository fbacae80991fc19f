"""Cases of learning from one's own completions that one rank and two ranks train alike, and the comparison of both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from ranks import two_ranks
from safetensors.torch import load_file

from mm.runtime.training.rollouts.completions import Sample
from mm.runtime.training.rollouts.experience import Experience
from mm.runtime.training.rollouts.rollout import Rollout
from mm.testing import tiny_run

TINY = {
    "num_generations": 4, "max_new_tokens": 8, "reward": "vowels", "global_batch_size": 3, "threads": 1, "log_interval": 1,
    "max_steps": 4, "learning_rate": 1e-3, "micro_batch_tokens": 90,
}  # fmt: skip
ROWS = [{"prompt": "say " + " and ".join(drawing.WORDS[: 1 + n % 3]) + f" {n}"} for n in range(7)]
TWICE = {"passes": 2, "mini_batches": 3, "max_steps": 8}
CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo in mini-batches": {**TWICE, "loss_type": "dapo", "dynamic_sampling": True},
    "grpo with experts": {**drawing.SMALL_EXPERTS, "moe_router_aux_loss_coef": 0.5},
    "grpo of one prompt": {"global_batch_size": 1},
    "reinforce-pp": {"mini_batches": 2},
    "rloo": {},
    "ppo": {**TWICE, "num_generations": 2, "kl_target": 0.1, "kl_stop": 1e-3},
    "spo": {"num_generations": 1, "global_batch_size": 5},
    "spo for all prompts": {"num_generations": 2, "value_tracker": "global"},
    "agent": {**drawing.AGENT, "micro_batch_tokens": 1000},
}


def run_cases(folder: str, *cases: str) -> None:
    """Train each case, and keep every completion that this rank drew."""
    workspace = Path(folder)
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    drawn: list[dict[str, Any]] = []
    log = Rollout._log

    def keep(self: Rollout, groups: list[list[Sample]], experience: list[Experience]) -> None:
        advantages = {one.sample.key: one.advantage for one in experience}
        samples = [sample for group in groups for sample in group]
        drawn.extend({"key": s.key, "ids": s.ids, "reward": s.reward, "advantage": advantages[s.key]} for s in samples)

    Rollout._log = keep  # type: ignore[method-assign]
    plugins = drawing.plugins()
    for case in cases:
        algo = case.split()[0]
        options = {"rows": ROWS, **({} if "arch" in CASES[case] else drawing.SMALL), **TINY, **CASES[case]}
        if algo == "agent":
            options = {n: v for n, v in options.items() if not n.startswith("dense")}
            options |= {"rows": drawing.EPISODES, "from_": workspace / "caller"}
        tiny_run(workspace, algo, plugins=plugins, run=case.replace(" ", "-"), **options)
        (workspace / f"{case}.{rank}.json").write_text(json.dumps(drawn))
        drawn.clear()
    Rollout._log = log  # type: ignore[method-assign]


def train_both(one: Path, two: Path, cases: Iterable[str]) -> None:
    """The cases on one rank and, at the same time, on two."""
    for folder in (one, two):
        folder.mkdir()
        (folder / "caller").symlink_to(drawing.caller(folder).model)
    with two_ranks("rollout_cases", "run_cases", two, *cases):
        run_cases(str(one), *cases)


def drawn(folder: Path, case: str) -> dict[tuple[int, ...], dict[str, Any]]:
    """The completions of all ranks by their keys; no two ranks drew one."""
    every = [sample for file in sorted(folder.glob(f"{case}.?.json")) for sample in json.loads(file.read_text())]
    found = {tuple(sample.pop("key")): sample for sample in every}
    assert len(found) == len(every)
    return found


def assert_equal(one: Path, two: Path, case: str) -> None:
    alone, both = drawn(one, case), drawn(two, case)
    assert alone.keys() == both.keys() and len(alone) > 4
    for key, sample in alone.items():
        assert both[key]["ids"] == sample["ids"]
        assert (both[key]["reward"], both[key]["advantage"]) == pytest.approx((sample["reward"], sample["advantage"]), abs=1e-3)
    name = case.replace(" ", "-")
    logs = [[json.loads(text) for text in (f / f"runs/{name}/metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    assert [line.keys() for line in logs[0]] == [line.keys() for line in logs[1]]
    norm = "policy/grad_norm" if case.startswith("ppo") else "grad_norm"
    assert all(line[norm] > 1e-3 for line in logs[0])
    for first, second in zip(*logs, strict=True):
        for figure in first.keys() - {"seconds", "engine_gap", "engine_gap_max", "router/load", "router/dead", "router/entropy"}:
            assert second[figure] == pytest.approx(first[figure], rel=1e-3, abs=2e-5), figure
    models = [load_file(folder / f"runs/{name}/model/model.safetensors") for folder in (one, two)]
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], atol=2e-5, rtol=1e-4, msg=lambda text: f"{case}: {text}")
