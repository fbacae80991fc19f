"""The plan of a training and of a pipeline: time, memory and disk space, and what it leaves untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import drawing
import pytest
from sizes import sizes

import mm
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.runs import estimate
from mm.runtime.runs.plan_stages import totals
from mm.runtime.runs.stage import Outcome
from mm.testing import tiny_rows
from mm.testing.pytest_plugin import CommandLine, Train

SMALL = {**sizes(layers=1), "arch": "dense", "preset": "tiny", "backend": "cpu", "dtype": "fp32"}


def words(**options: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


@pytest.fixture
def rows(mm_workspace: Path) -> Path:
    path = mm_workspace / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows("text") * 10), encoding="utf-8")
    return path


def test_a_plan_measures_once_and_keeps_nothing_else(mm_cli: CommandLine, mm_workspace: Path, rows: Path) -> None:
    line = ["train", "--algo", "pretrain", *words(**SMALL, data=rows, run="a", max_steps=1000), "--dry-run"]
    first = mm_cli(*line)
    assert "measuring a few steps" in first.err and "measured by a calibration" in first.out
    assert {p.name for p in mm_workspace.iterdir()} == {"rows.jsonl", ".mm"}
    assert [p.name for p in (mm_workspace / ".mm").iterdir()] == ["speed.json"]
    second = mm_cli(*line, "--json")
    assert "measuring" not in second.err
    plan = json.loads(second.out)
    assert plan["seconds"] == pytest.approx(plan["tokens_per_step"] * 1000 / plan["speed"]["tokens_per_second"])
    assert plan["steps"] == 1000 and plan["rows"] == len(tiny_rows("text")) * 10 and plan["settings"]["run"] == "a"
    assert all(f"\n{name}" in first.out for name in ("time", "memory", "disk"))


def test_from_python_nothing_is_measured_unless_asked(mm_workspace: Path, rows: Path) -> None:
    plan = mm.plan("pretrain", **SMALL, data=rows, run="a", max_steps=8, quiet=True)
    assert "not known" in plan and plan.values["seconds"] is None and not (mm_workspace / ".mm").exists()
    assert mm.plan("pretrain", **SMALL, data=rows, run="a", max_steps=8, quiet=True, calibrate=True).values["seconds"] > 0


@pytest.mark.mm_plugins("drawing")
def test_a_run_tells_its_speed_to_later_plans(
    mm_train: Train, plugins: PluginManager, mm_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm.runtime.runs import speed

    monkeypatch.setattr(speed, "_LEAST_STEPS", 1)
    monkeypatch.setattr(speed, "_LEAST_SECONDS", 0.0)
    run = mm_train(
        "grpo", rows=drawing.PROMPTS, num_generations=2, max_new_tokens=4, global_batch_size=2, reward="vowels", max_steps=2,
        passes=2, run="measured", **drawing.SMALL,
    )  # fmt: skip
    plan = mm.plan("grpo", config=run.path / "run.toml", run="next", workspace=mm_workspace, plugins=plugins, max_steps=20)
    assert "(as in run measured)" in plan
    assert plan.values["seconds"] == pytest.approx(run.manifest["seconds"] * 10, rel=0.01)


def test_a_training_that_would_fail_fails_in_its_plan_with_the_users_own_paths(
    mm_cli: CommandLine, mm_workspace: Path, rows: Path
) -> None:
    options = {"data": rows, "run": "a", "dense_max_position_embeddings": 8, "max_length": 16}
    line = ["train", "--algo", "pretrain", *words(**SMALL, **options), "--dry-run"]
    assert "is more than the 8 positions of the policy" in mm_cli(*line, code=2).err
    prompts = mm_workspace / "prompts.jsonl"
    prompts.write_text("\n" + "".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) + "\n\n" for n in range(9)))
    (mm_workspace / "f.py").write_text(
        "def fine(rows, completions):\n    return [1.0 if 'a' in text else 0.0 for text in completions]\n\n"
        "def missing(completions, solution):\n    return [0.0]\n"
    )
    mm.train("pretrain", **SMALL, data=rows, run="base", max_steps=1, global_batch_size=2, eval_ratio=0.0, quiet=True)
    options = {"from": "base", "data": prompts, "backend": "cpu", "dtype": "fp32", "global_batch_size": 4, "max_new_tokens": 4}
    line = ["train", "--algo", "grpo", *words(**options, num_generations=2, reward="python", run="g"), "--dry-run"]
    for function, said in (
        ("nosuch.py:f", f"--python-function {mm_workspace}/nosuch.py:f: the file {mm_workspace}/nosuch.py does not exist"),
        ("f.py:nope", f"--python-function {mm_workspace}/f.py:nope: {mm_workspace}/f.py has no function 'nope'"),
        ("f.py:missing", f"failed on {prompts}:"),
    ):
        failed = mm_cli(*line, "--python-function", function, code=2)
        assert said in failed.err and not failed.out and "calibration" not in failed.err
    place = failed.err.partition(f"{prompts}:")[2].partition(":")[0]
    assert int(place) in range(2, 20, 2)  # a line of the user's file
    fine = mm_cli(*line, "--python-function", "f.py:fine")  # the same command with the mistake mended
    assert "steps      3 of 4 prompts, about" in fine.out and "measured by a calibration" in fine.out
    assert "2 completions of each prompt (--num-generations), at most 4 tokens each (--max-new-tokens)" in fine.out
    assert "weight of the KL" in fine.out and not (mm_workspace / "runs" / "g").exists()


def test_a_plan_for_a_resume_leaves_the_run_as_it_is(mm_cli: CommandLine, mm_train: Train, mm_workspace: Path) -> None:
    options = {"num_generations": 2, "max_new_tokens": 4, "global_batch_size": 2, "reward": "length", "max_steps": 4}
    run = mm_train("grpo", rows=drawing.PROMPTS, stop_after_steps=2, run="a", log_interval=1, **options, **drawing.SMALL)
    before = (run.path / "rollouts.jsonl").read_bytes()
    mm_cli("train", "--resume", "--run", "a", "--dry-run")
    assert (run.path / "rollouts.jsonl").read_bytes() == before and [p.name for p in (mm_workspace / "runs").iterdir()] == ["a"]


def test_a_batch_larger_than_the_data_is_noted(mm_workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = mm_workspace / "two.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows("text")[:2]), encoding="utf-8")
    options = {**SMALL, "data": data, "run": "a", "max_length": 64, "epochs": 3, "eval_ratio": 0.0}
    said = "2 units are less than a batch: with --global-batch-size 8 each step takes every unit 4 times."
    plan = mm.plan("pretrain", **options, global_batch_size=8, quiet=True)
    assert f"\nnote       {said}" in plan and plan.values["steps"] == 1
    mm.train("pretrain", **options, global_batch_size=8)
    assert said in capsys.readouterr().err
    assert "note" not in mm.plan("pretrain", **{**options, "run": "b"}, global_batch_size=2, quiet=True)


def test_the_whole_pipeline_is_planned_before_anything_exists(mm_cli: CommandLine, mm_workspace: Path, rows: Path) -> None:
    chats = mm_workspace / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows("chat") * 3), encoding="utf-8")
    options = words(
        preset="tiny", pretrain_arch="dense", pretrain_dense_hidden_size=16, pretrain_dense_num_hidden_layers=1, max_steps=2,
        tokenizer_data=rows, tokenizer_vocab_size=300, pretrain_data=rows, sft_data=chats, backend="cpu", dtype="fp32",
        global_batch_size=2,
    )  # fmt: skip
    line = ["run", "tokenizer", "pretrain", "sft", *options]
    planned = mm_cli(*line, "--dry-run", "--json")
    outcomes = {outcome["stage"]: outcome for outcome in json.loads(planned.out)}
    assert all(outcomes[name]["plan"]["steps"] == 2 and outcomes[name]["seconds"] for name in ("pretrain", "sft"))
    assert "[sft] mm train --algo sft, from run:pretrain once that exists: 2 steps" in planned.err
    assert planned.err.splitlines()[-1].startswith("in all: about 0:00:0") and not (mm_workspace / "runs").exists()
    mm_cli(*line)
    again = mm_cli(*line, "--dry-run").err
    assert [f"[{name}] up to date" in again for name in ("tokenizer", "pretrain", "sft")] == [True] * 3
    assert again.endswith("in all: nothing to do, every stage is up to date\n")
    more = mm_cli(*line, "--sft-epochs", "2", "--sft-max-steps", "none", "--dry-run").err
    assert "[pretrain] up to date" in more and "[sft] algorithm  sft" in more
    first = mm_cli(*line, "--pretrain-seed", "7", "--dry-run").err  # what is made from a new model is made anew
    assert "[tokenizer] up to date" in first and "[sft] algorithm  sft" in first


def test_totals_say_what_they_leave_out() -> None:
    timed = Outcome("sft", "planned", 90.0, plan={"disk": {"model": 3 * 2**20, "checkpoints": 2**20}})
    assert totals([timed, Outcome("eval", "planned", None)]) == (
        "in all: about 0:01:30 and 4.0 MiB of disk space; without the time of eval"
    )


def test_memory_and_disk_follow_from_the_settings(plugins: PluginManager, rows: Path) -> None:
    from mm.core.config.composition import Composition
    from mm.core.layers import argument_layer

    def resolved(**options: Any) -> Run:
        given = {**SMALL, "data": str(rows), "run": "a", "tokenizer": "x", **options}
        return Composition(plugins, [argument_layer(given)]).resolve().run

    config = DenseConfig()
    size = 4 * config.num_parameters()
    plain = estimate.memory(resolved(algo="pretrain"), config, 1000)
    names = ("weights", "gradients", "optimizer", "copy for saving")
    assert [plain[name] for name in names] == [size, size, 2 * size, 3 * size]
    pair = estimate.memory(resolved(algo="dpo"), config, 1000)
    assert pair["weights"] == 2 * size and estimate.memory(resolved(algo="dpo", adapter="lora"), config, 1000)["weights"] == size
    critic = estimate.memory(resolved(algo="ppo", reward="length"), config, 1000)
    assert critic["weights"] == 3 * size and critic["gradients"] == 2 * size
    kept = estimate.disk(resolved(algo="pretrain", keep_checkpoints=3), config, 100)
    assert kept == {"checkpoints": 9 * size, "model": size, "best": 0, "token cache": 300}
    bounded = attrs.evolve(config, num_hidden_layers=16)
    assert estimate.memory(resolved(algo="pretrain"), bounded, 1000)["activations"] == 2 * plain["activations"]
    assert [estimate.size_text(n) for n in (0, 999, 2**20, 1.5 * 2**30)] == ["0 B", "999 B", "1.0 MiB", "1.5 GiB"]
