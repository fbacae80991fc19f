"""LoRA beside other roles: what the reference is, and adapters of roles beside the policy."""

from __future__ import annotations

import json
from typing import Any

import drawing
import pytest
from safetensors.torch import load_file

import mm
from mm.core.workspace import RunFolder
from mm.testing import tiny_run

SMALL = {"max_steps": 3, "learning_rate": 1e-2, "threads": 1, "log_interval": 1, "seed": 5}
DRAWN = {"num_generations": 3, "max_new_tokens": 8, "reward": "vowels", "rows": drawing.PROMPTS, "plugins": drawing.plugins()}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A base and, beside it, an adapter that has learned something."""
    workspace = tmp_path_factory.mktemp("tuned")
    tiny_run(workspace, "pretrain", run="base", **SMALL)
    return tiny_run(workspace, "lora", from_="base", run="tuned", **SMALL)


def logged(run: RunFolder) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if "learning_rate" in line]


def continued(tuned: RunFolder, algo: str, name: str, **options: Any) -> RunFolder:
    start = {"from_": "base", "adapter": "lora", "lora_from": tuned.model / "adapter"}
    return tiny_run(tuned.path.parents[1], algo, run=name, **{**SMALL, **start, **options})


def test_the_reference_is_what_the_policy_began_as(tuned: RunFolder) -> None:
    """An adapter that is gone on with is merged first, so that switching off its successor gives the start."""
    run = continued(tuned, "dpo", "preferring", cache_reference=True)
    assert logged(run)[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert logged(run)[0]["chosen_drift"] == pytest.approx(0.0, abs=1e-5)
    assert logged(run)[-1]["margin"] > 0.05
    frozen, start = (load_file(f / "model.safetensors") for f in (next(run.checkpoints.glob("step-*")), tuned.model))
    assert all(frozen[name].allclose(start[name], atol=1e-6) for name in start)
    assert logged(continued(tuned, "grpo", "rewarded", **DRAWN))[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_reference_of_its_own_leaves_the_adapter_as_it_was_read(tuned: RunFolder) -> None:
    run = continued(tuned, "dpo", "apart", reference_from="tuned", max_steps=1, learning_rate=1e-30, weight_decay=0.0)
    assert logged(run)[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    old, new = (load_file(r.model / "adapter/adapter_model.safetensors") for r in (tuned, run))
    assert all(old[name].equal(new[name]) for name in old)


@pytest.mark.parametrize("cached", [False, True])
def test_resuming_after_that_is_exact(cached: bool, tuned: RunFolder) -> None:
    options = {"cache_reference": cached, "max_steps": 4}
    whole = continued(tuned, "dpo", f"whole-{cached}", **options)
    continued(tuned, "dpo", f"cut-{cached}", stop_after_steps=2, **options)
    cut = mm.train("dpo", run=f"cut-{cached}", resume=True, workspace=tuned.path.parents[1], quiet=True)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (whole.model / file).read_bytes() == (cut.model / file).read_bytes()
    assert logged(whole)[2:] == logged(cut)[2:]
