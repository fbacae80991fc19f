"""`--profile`: the trace, the tables made of it, and what is said where there is nothing to trace."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from sizes import sizes

import mm
from mm.core.errors import UsageError
from mm.runtime.training.callbacks.profiling import Spans, group_of
from mm.testing.pytest_plugin import Train

pytestmark = pytest.mark.mm_train("sft", max_steps=6, log_interval=10, run="a", **sizes())
ROW = re.compile(r"^(.{32}) +([\d.]+) +(-|[\d.]+) +([\d.]+)% +([\d.]+)$", re.MULTILINE)


def rows(text: str) -> dict[str, tuple[float, float, float]]:
    """row -> (host ms a step, share in %, MiB)."""
    return {m[1].rstrip(): (float(m[2]), float(m[4]), float(m[5])) for m in ROW.finditer(text)}


def test_a_trace_and_where_its_time_went(mm_train: Train) -> None:
    run = mm_train(profile="2", eval_ratio=0.3, eval_interval=3)
    assert sorted(p.name for p in (run.path / "profile").iterdir()) == ["steps-3-4.json", "steps-3-4.txt"]
    text = (run.path / "profile/steps-3-4.txt").read_text(encoding="utf-8")
    assert text.startswith("steps 3 to 4 on cpu: ")
    phases, operators = (rows(part) for part in text.split("\noperators"))
    assert list(phases) == ["data", "forward", "backward", "optimizer", "evaluation", "other"]
    assert sum(share for _, share, _ in phases.values()) == pytest.approx(100, abs=0.5)
    assert sum(share for _, share, _ in operators.values()) == pytest.approx(100, abs=0.8)
    assert operators["matrix products"][0] > 0 and operators["optimizer"][0] > 0
    # operators are those of the steps: together no longer than the steps' phases, which they fill but for Python
    inside = sum(phases[name][0] for name in ("data", "forward", "backward", "optimizer"))
    assert 0.2 * inside < sum(ms for ms, _, _ in operators.values()) <= inside * 1.01
    assert phases["backward"][2] >= phases["data"][2]

    trace = json.loads((run.path / "profile/steps-3-4.json").read_text())["traceEvents"]
    marks = [event for event in trace if event.get("cat") == "user_annotation"]
    counted = Counter(mark["name"].removeprefix("mm.") for mark in marks if mark["name"].startswith("mm."))
    assert counted == {"data": 4, "forward": 2, "backward": 2, "optimizer": 2, "evaluation": 1}
    total = sum(m["dur"] for m in marks if m["name"] == "mm.forward") / 1000 / 2
    assert phases["forward"][0] == pytest.approx(total, abs=0.01)
    without = mm_train(run="b", eval_ratio=0.3, eval_interval=3)
    assert (without.model / "model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()
    assert not (without.path / "profile").exists()


def test_named_steps_are_traced_as_far_as_the_run_goes(
    mm_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = mm_train(profile="5:9")
    assert (run.path / "profile/steps-5-6.txt").exists()
    data = tmp_path / "tiny_rows.jsonl"
    options = {"data": data, "from_": "a", "run": "b", "backend": "cpu", "max_steps": 2, "eval_ratio": 0.0}
    capsys.readouterr()
    late = mm.train("sft", workspace=tmp_path, profile="7:1", **options)
    assert "--profile 7:1: nothing was traced, the run was at step 2 when it ended" in capsys.readouterr().err
    assert not (late.path / "profile").exists()
    first = mm.train("sft", workspace=tmp_path, profile="1:1", **{**options, "run": "c"})
    assert (first.path / "profile/steps-1-1.json").exists()
    said = capsys.readouterr().err
    assert "steps 1 to 1 on cpu: " in said and "matrix products" in said and "ui.perfetto.dev" in said


def test_a_resumed_run_does_not_trace_again(mm_train: Train) -> None:
    run = mm_train(profile="1", stop_after_steps=4)
    mm_train(resume=True)
    assert [p.name for p in (run.path / "profile").glob("*.json")] == ["steps-3-3.json"]


@pytest.mark.parametrize("text", ["0", "x", "3:", ":3", "0:2", "2:0", "-1"])
def test_other_words_are_refused(text: str, mm_train: Train) -> None:
    with pytest.raises(UsageError, match=r"--profile: 'profile' must be a number of steps, or FIRST:COUNT"):
        mm_train(profile=text)


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("aten::mm", "matrix products"), ("aten::addmm_", "matrix products"), ("aten::bmm", "matrix products"),
        ("aten::_fused_adamw_", "optimizer"), ("aten::copy_", "copies and casts"), ("aten::add_", "elementwise"),
        ("aten::_log_softmax", "softmax"), ("aten::silu_backward", "activations"), ("aten::sum", "reductions"),
        ("aten::_scaled_dot_product_flash_attention", "attention"), ("nccl:all_reduce", "communication"),
        ("aten::embedding_dense_backward", "gathers"), ("aten::view", "views, allocation and the rest"),
        ("autograd::engine::evaluate_function: MmBackward0", "views, allocation and the rest"),
    ],
)  # fmt: skip
def test_groups_of_operators(operator: str, group: str) -> None:
    assert group_of(operator) == group


def test_a_moment_belongs_to_the_phase_around_it() -> None:
    spans = Spans.of([(5.0, 6.0, "backward"), (1.0, 3.0, "forward")])
    assert [spans.at(t) for t in (0.5, 1.0, 2.9, 3.5, 5.5, 7.0)] == ["other", "forward", "forward", "other", "backward", "other"]


def test_phases_cost_nothing_without_a_trace() -> None:
    from contextlib import nullcontext

    from mm.runtime.training.phases import phase

    assert isinstance(phase("forward"), nullcontext)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, phase("forward"):
        torch.ones(2).sum()
    assert "mm.forward" in {event.name for event in profiler.events()}
