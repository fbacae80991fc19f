"""The plan of a training and of a pipeline: time, memory and disk space, and what it leaves untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import pytest
from sizes import sizes

import mm
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.runs import estimate
from mm.runtime.runs.count import Count
from mm.runtime.runs.plan_machine import Machine
from mm.runtime.runs.plan_memory import memory_of
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
    assert all(f"\n{name}" in first.out for name in ("time", "memory", "process", "disk"))


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
        assert ("measuring" in failed.err) == (function != "nosuch.py:f")  # a file that is missing is told before
    place = failed.err.partition(f"{prompts}:")[2].partition(":")[0]
    assert int(place) in range(2, 20, 2)  # a line of the user's file
    fine = mm_cli(*line, "--python-function", "f.py:fine")  # the same command with the mistake mended
    assert "steps      3 of 4 prompts, about" in fine.out and "measured by a calibration" in fine.out
    assert "2 completions of each prompt (--num-generations), at most 4 tokens each (--max-new-tokens)" in fine.out
    assert "weight of the KL" in fine.out and not (mm_workspace / "runs" / "g").exists()


def test_a_reward_model_that_is_missing_is_told_before_anything_is_measured(
    mm_cli: CommandLine, mm_workspace: Path, rows: Path
) -> None:
    line = ["train", "--algo", "grpo", *words(**SMALL, data="skills", run="g"), "--dry-run", "--reward"]
    for reward, said in (
        (["model"], "--reward model needs --model-path FOLDER"),
        (["model", "--model-path", "no"], f"--model-path {mm_workspace}/no: not a model folder: it has no config.json"),
        (["minimind-agent", "--minimind-agent-path", "no"], f"--minimind-agent-path {mm_workspace}/no: not a model folder"),
    ):
        failed = mm_cli(*line, *reward, code=2)
        assert said in failed.err and "measuring" not in failed.err and not (mm_workspace / "runs").exists()


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
    assert "not verified" not in planned.err  # of the models that stand for those to come
    assert planned.err.splitlines()[-1].startswith("in all: about 0:00:0") and not (mm_workspace / "runs").exists()
    mm_cli(*line)
    again = mm_cli(*line, "--dry-run").err
    assert [f"[{name}] up to date" in again for name in ("tokenizer", "pretrain", "sft")] == [True] * 3
    assert again.endswith("in all: nothing to do, every stage is up to date\n")
    more = mm_cli(*line, "--sft-epochs", "2", "--sft-max-steps", "none", "--dry-run").err
    assert "[pretrain] up to date" in more and "[sft] algorithm  sft" in more
    first = mm_cli(*line, "--pretrain-seed", "7", "--dry-run").err  # what is made from a new model is made anew
    assert "[tokenizer] up to date" in first and "[sft] algorithm  sft" in first


def test_a_pipeline_is_measured_within_a_bound(mm_cli: CommandLine, mm_workspace: Path, rows: Path) -> None:
    chats, prompts = mm_workspace / "chats.jsonl", mm_workspace / "prompts.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows("chat") * 3), encoding="utf-8")
    prompts.write_text("".join(json.dumps({"prompt": f"{n}?"}) + "\n" for n in range(9)))
    options = words(
        pretrain_arch="dense", pretrain_preset="tiny", pretrain_dense_hidden_size=16, pretrain_dense_num_hidden_layers=1,
        pretrain_data=rows, sft_data=chats, dpo_max_length=128, grpo_data=prompts, grpo_reward="length", grpo_num_generations=2,
        grpo_max_new_tokens=200, max_steps=50, backend="cpu", dtype="fp32", global_batch_size=2, max_length=64,
    )  # fmt: skip
    line = ["run", "tokenizer", "pretrain", "sft", "dpo", "grpo", *options, "--dry-run"]
    little = mm_cli(*line, "--measure-seconds", 1e-9).err
    assert little.count("not known: no step ended within the 1e-09 s that are measured") == 4
    nothing = mm_cli(*line, "--measure-seconds", 0).err
    assert nothing.count("not known: no run like it was measured here yet") == 4 and "steps were measured" not in nothing
    told = mm_cli(*line)
    stages = dict(text.removeprefix("[").split("] ", 1) for text in told.err.splitlines() if text.startswith("["))
    assert "(measured by a calibration)" in stages["pretrain"] and "(measured by a calibration)" in stages["dpo"]
    assert "(estimated from the steps of pretrain: the same model and length)" in stages["sft"]
    assert "(estimated from a prompt with completions of 4 and 16 tokens, for the longest ones)" in stages["grpo"]
    assert "(steps were measured for at most 20 s of a stage)" in told.err and "not verified" not in told.err
    assert "estimated from a prompt" in mm_cli(*line).err  # kept for the next plan of the pipeline


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

    def memory(ranks: int = 1, targets: float = 1.0, host: bool = True, **options: Any) -> dict[str, int]:
        machine = Machine(dtype=options.get("dtype", "fp32"), ranks=ranks, host=host, memory=None)
        counted = Count(rows=1000, units=1000, tokens=100_000, names="rows", targets=targets, length=100.0)
        return memory_of(resolved(**options), options.get("config", config), counted, machine).kinds

    config = DenseConfig()
    size = 4 * config.num_parameters()
    plain = memory(algo="pretrain", micro_batch_tokens=1000)
    names = ("weights", "gradients", "optimizer", "copy for saving", "position tables")
    assert [plain[name] for name in names] == [size, size, 2 * size, 3 * size, 4 * config.footprint().tables]
    on_a_card = memory(algo="pretrain", micro_batch_tokens=1000, host=False)  # the copy is in the host's memory
    assert on_a_card == {name: value for name, value in plain.items() if name != "copy for saving"}
    assert memory(algo="pretrain", micro_batch_tokens=2000)["activations"] == 2 * plain["activations"]
    pair = memory(algo="dpo")
    assert pair["reference"] == size and "reference" not in memory(algo="dpo", adapter="lora")
    critic = memory(algo="ppo", reward="length", global_batch_size=512)
    assert critic["critic"] == critic["reference"] == size and critic["gradients"] == 2 * size
    ranks = memory(ranks=2, algo="pretrain", micro_batch_tokens=1000)
    assert ranks["shared gradients"] == size and ranks["activations"] == plain["activations"]
    sharded = memory(ranks=2, parallel="fsdp", algo="pretrain", micro_batch_tokens=1000)
    assert sharded["weights"] == size // 2 and sharded["optimizer"] == size and "shared gradients" not in sharded
    kept = estimate.disk(resolved(algo="pretrain", keep_checkpoints=3), config, 100)
    assert kept == {"checkpoints": 9 * size, "model": size, "best": 0, "token cache": 300}
    dropped = memory(algo="pretrain", dropout=0.1, micro_batch_tokens=1000)
    pairs = 1000 * 100 * config.num_hidden_layers * config.num_attention_heads  # sequences of 100 tokens
    copies = 3 * 1000 * config.num_hidden_layers * config.hidden_size
    assert dropped["dropout"] == 9 * pairs + 4 * copies
    again = memory(algo="pretrain", activation_checkpointing=True, micro_batch_tokens=1000)
    assert again["activations"] < plain["activations"] / 2
    assert [estimate.size_text(n) for n in (0, 999, 2**20, 1.5 * 2**30)] == ["0 B", "999 B", "1.0 MiB", "1.5 GiB"]


def test_mm_plan_is_the_dry_run_of_a_training_and_of_stages(mm_cli: CommandLine, mm_workspace: Path, rows: Path) -> None:
    training = ["--algo", "pretrain", *words(**SMALL, data=rows, run="a", max_steps=10)]
    planned = mm_cli("plan", *training)
    assert planned.out == mm_cli("train", *training, "--dry-run").out  # the speed is kept: both know the same
    as_values = [mm_cli(*line, *training, "--json").out for line in (["plan"], ["train", "--dry-run"])]
    assert json.loads(as_values[0]) == json.loads(as_values[1])
    stages = [*words(max_steps=2, data=rows, backend="cpu"), "tokenizer", "pretrain", "--preset", "tiny"]
    assert mm_cli("plan", *stages, "--measure-seconds", 0).err == mm_cli("run", *stages, "--measure-seconds", 0, "--dry-run").err
    outcomes = json.loads(mm_cli("plan", *stages, "--json", "--measure-seconds=0").out)
    assert [outcome["stage"] for outcome in outcomes] == ["tokenizer", "pretrain"] and outcomes[1]["plan"]["memory"]
    other = mm_cli("plan", *training, "--threads=3", "--measure-seconds=0").out
    assert "not known: no run like it was measured here yet" in other
    assert not (mm_workspace / "runs").exists()


def test_mm_plan_refuses_what_has_no_use(mm_cli: CommandLine, rows: Path) -> None:
    training = ["--algo", "pretrain", *words(**SMALL, data=rows)]
    assert "--force is for stages" in mm_cli("plan", *training, "--force", code=2).err
    assert "--resume is for a training" in mm_cli("plan", "pretrain", "--resume", code=2).err
    assert "No such option: --learning-rat" in mm_cli("plan", "pretrain", "--learning-rat", "1", code=2).err
    assert "No such option: --learning-rat" in mm_cli("plan", *training, "--learning-rat", "1", code=2).err
    assert "this plan is for one machine" in mm_cli("plan", *training, "--nnodes", "2", "--measure-seconds=0").err


def test_a_plan_that_does_not_fit_says_which_value_would(
    mm_cli: CommandLine, mm_workspace: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm.runtime.runs import plan_machine, plan_time

    line = ["plan", "--algo", "pretrain", *words(**SMALL, data=rows, max_steps=3, global_batch_size=256), "--measure-seconds=0"]
    fitting = json.loads(mm_cli(*line, "--json").out)
    assert fitting["fits"] and not fitting["to_fit"]
    room = fitting["memory_needed"] - 2**19
    for module in (plan_machine, plan_time):
        monkeypatch.setattr(module, "host_memory", lambda: room)
    told = json.loads(mm_cli(*line, "--json").out)
    assert not told["fits"] and told["device_memory"] == room and told["to_fit"]
    assert "\ntoo large  " in mm_cli(*line).out
    for cure in told["to_fit"]:  # each of them is true
        assert json.loads(mm_cli(*line, *cure.split(), "--json").out)["fits"]
    monkeypatch.setattr(plan_machine, "host_memory", lambda: 2**20)
    assert json.loads(mm_cli(*line, "--json").out)["to_fit"] == []
    assert "a smaller model (--preset), since no setting is enough" in mm_cli(*line).out


def test_a_plan_for_ranks_counts_each_and_all_of_them(mm_cli: CommandLine, rows: Path) -> None:
    line = ["plan", "--algo", "pretrain", *words(**SMALL, data=rows), "--measure-seconds=0", "--json"]
    one, two = (json.loads(mm_cli(*line, f"--nproc={n}").out) for n in (1, 2))
    assert two["ranks"] == 2 and two["memory"]["shared gradients"] == 4 * two["parameters"]
    assert two["memory_needed"] == 2 * (sum(two["memory"].values()) + two["process_memory"] + two["kernel_memory"])
    assert two["memory"]["activations"] < 0.6 * one["memory"]["activations"]  # half of the rows of a batch


@pytest.mark.slow
def test_ranks_are_measured_as_they_would_train(mm_cli: CommandLine, mm_workspace: Path, rows: Path) -> None:
    line = ["plan", "--algo", "pretrain", *words(**SMALL, data=rows, max_steps=50, global_batch_size=8), "--nproc=2", "--json"]
    first = mm_cli(*line)
    assert "measuring a few steps on 2 ranks" in first.err and json.loads(first.out)["seconds"] > 0
    assert "measuring" not in mm_cli(*line).err
    assert "measuring" in mm_cli(*[word for word in line if word != "--nproc=2"]).err  # one rank has another speed
    assert not (mm_workspace / "runs").exists()


def test_learned_tokens_and_long_sequences_are_counted(plugins: PluginManager, mm_workspace: Path) -> None:
    from mm.core.config.composition import Composition
    from mm.core.layers import argument_layer
    from mm.runtime.runs.count import count_rows
    from mm.testing import tiny_tokenizer

    data = mm_workspace / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": "a" * n}) + "\n" for n in (3, 28)), encoding="utf-8")
    given = {**SMALL, "algo": "pretrain", "data": str(data), "run": "a", "tokenizer": "x"}
    counted = count_rows(plugins, Composition(plugins, [argument_layer(given)]).resolve().run, tiny_tokenizer())
    assert counted.units == 2 and counted.targets == pytest.approx((counted.tokens - 2) / counted.tokens)
    assert counted.tokens / 2 < counted.length < counted.tokens  # nearer to that of the long one
