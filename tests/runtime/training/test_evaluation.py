"""What happens at evaluations: figures on a file, early stopping, the best model, samples; and how a run ends."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import lines, weights, write_rows
from safetensors.torch import load_file
from sizes import sizes

import mm
from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.errors import Interrupted, UsageError
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.models.finding import find_model
from mm.runtime.runs.reading import RecordedRun
from mm.testing import tiny_rows
from mm.testing.pytest_plugin import CommandLine, Plugins, Train

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"number {n} " * (1 + n % 5)}]}
    for n in range(11)
]  # fmt: skip
SMALL = {
    **sizes(), "max_steps": 8, "global_batch_size": 3, "log_interval": 4, "learning_rate": 1e-2, "eval_ratio": 0.3,
    "eval_interval": 2, "run": "a",
}  # fmt: skip
pytestmark = pytest.mark.mm_train("sft", rows=ROWS, **SMALL)
# an improvement that no evaluation reaches: the second one is the first without
NEVER = {"patience": 2, "min_delta": 100.0}


def measured(run: RunFolder) -> dict[int, float]:
    """step -> held-out loss. Raises AssertionError where a step was measured twice."""
    found = [(line["step"], line["held_out/loss"]) for line in lines(run) if "held_out/loss" in line]
    assert len(dict(found)) == len(found)
    return dict(found)


class Signal(Callback):
    """Sends this process a signal at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        self.event, self.step = event, step

    def on_step(self, run: TrainingView) -> None:
        self._send("on_step", run)

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        self._send("on_evaluate", run)

    def _send(self, event: str, run: TrainingView) -> None:
        if (event, run.step) == (self.event, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


class Disturb(Callback):
    """Makes the model worse after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step(self, run: TrainingView) -> None:
        if run.step == self.after:
            with torch.no_grad():
                run.roles["policy"].model.get_parameter("model.norm.weight").mul_(-20.0)


# ---- on a file


def test_a_file_is_measured_instead_of_held_out_rows(mm_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same rows as a file give the figures of the rows that were held out, and none is taken from training."""
    held = mm_train(learning_rate=1e-30, max_steps=2)
    (part,) = held.manifest["data"]
    assert part["units"] == len(ROWS) and held.manifest["eval_data"] == []
    own = write_rows(tmp_path / "own.jsonl", ROWS)
    options = {"eval_ratio": None, "eval_data": own, "learning_rate": 1e-30, "max_steps": None, "epochs": 1}
    on_file = mm_train(run="file", **options)
    assert on_file.manifest["steps"] == 4  # 11 rows, 3 a step: all are learned
    assert on_file.manifest["eval_data"][0]["locator"] == str(own)
    options["eval_rows"] = 2
    few = mm_train(run="few", **options)
    assert measured(on_file)[0] != pytest.approx(measured(few)[0])
    both = mm.train(
        "sft", workspace=tmp_path, from_="few", run="said", data=tmp_path / "tiny_rows.jsonl", eval_data=own, backend="cpu",
        max_steps=1, eval_rows=2,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert "--eval-data: 11 of 11 units are training data too" in said
    assert "--eval-data: the first 2 of 11 units are measured (--eval-rows)" in said
    assert measured(both)[0] == pytest.approx(measured(few)[4], rel=0.02)  # the type of the chip's choice


def test_the_file_of_an_evaluation_must_stay_as_it_is(mm_train: Train, tmp_path: Path) -> None:
    own = write_rows(tmp_path / "own.jsonl", ROWS[:3])
    mm_train(eval_ratio=None, eval_data=own, stop_after_steps=1)
    write_rows(own, ROWS[:4])
    with pytest.raises(UsageError, match="The evaluation data of run a has changed"):
        mm_train(eval_ratio=None, eval_data=own, resume=True)


def test_without_an_interval_the_curve_of_a_run_has_a_point_after_each_fifth(mm_train: Train) -> None:
    assert list(measured(mm_train(eval_interval=None, max_steps=11))) == [0, 3, 6, 9, 11]
    # early stopping compares these too
    assert mm_train(eval_interval=None, max_steps=11, run="b", patience=1, min_delta=100.0).manifest["step"] == 6


def test_settings_that_would_do_nothing_are_refused(mm_train: Train, tmp_path: Path) -> None:
    own = write_rows(tmp_path / "own.jsonl", ROWS[:3])
    with pytest.raises(UsageError, match="--eval-data measures on its own rows and --eval-ratio holds out others"):
        mm_train(eval_data=own)
    for option in ({"patience": 1}, {"keep_best": True}, {"samples": 1}, {"sample_prompt": "x"}):
        with pytest.raises(UsageError, match="no row is held out: give --eval-ratio or --eval-data"):
            mm_train(eval_ratio=0.0, **option)
    assert not (tmp_path / "runs").exists()


def test_few_held_out_units_are_said_to_judge_badly(
    mm_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = mm_train(max_steps=1, keep_best=True, patience=2).manifest["notes"]
    said = "--patience and --keep-best: the mean of only 5 held-out units is mostly chance; raise --eval-ratio"
    assert any(note.startswith(said) for note in notes)
    assert not any("mostly chance" in note for note in mm_train(max_steps=1, run="b").manifest["notes"])
    options = {**SMALL, "max_steps": 1, "run": "c", "arch": "dense", "preset": "tiny", "backend": "cpu"}
    mm.train("sft", data=write_rows(tmp_path / "own.jsonl", ROWS[:1] * 2), workspace=tmp_path, **options)
    said = "held out: none, as all of the 2 units are of one row or of equal ones, so nothing is evaluated: give more rows, or"
    assert said in capsys.readouterr().err


# ---- early stopping


def test_a_training_without_improvement_ends(mm_train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = mm_train(**NEVER)
    manifest = run.manifest
    assert (manifest["state"], manifest["step"], manifest["steps"]) == ("finished", 6, 8)
    assert manifest["stop_reason"].startswith("early stopping: nothing better than held-out loss ")
    assert manifest["stop_reason"].endswith("(step 2) in 2 evaluations")
    assert sorted(measured(run)) == [0, 2, 4, 6]
    assert weights(run.model) == weights(run.checkpoints / "step-00000006")
    with pytest.raises(UsageError, match="Run a is finished"):
        mm_train(resume=True, **NEVER)
    capsys.readouterr()
    whole = mm_train(run="whole", patience=2)  # it improves all the time
    assert (whole.manifest["step"], whole.manifest["stop_reason"]) == (8, "the end of the schedule")
    losses = list(measured(whole).values())
    assert losses == sorted(losses, reverse=True)


def test_patience_counts_from_the_best(mm_train: Train, mm_watchers: list[Callback]) -> None:
    mm_watchers.append(Disturb(after=5))
    run = mm_train(patience=3, max_steps=40, learning_rate=1e-4)
    losses = measured(run)
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert best == 4 and run.manifest["step"] == best + 3 * 2
    assert f"held-out loss {losses[4]:.4g} (step 4) in 3 evaluations" in run.manifest["stop_reason"]


@pytest.mark.parametrize("step", [3, 4])
def test_early_stopping_survives_a_resume(step: int, mm_train: Train) -> None:
    whole = mm_train(**NEVER, keep_best=True, samples=1, sample_tokens=4)
    options = {**NEVER, "keep_best": True, "samples": 1, "sample_tokens": 4, "run": "b"}
    assert mm_train(stop_after_steps=step, **options).manifest["stop_reason"] == f"--stop-after-steps {step}"
    resumed = mm_train(resume=True, **options)
    for key in ("state", "step", "stop_reason"):
        assert resumed.manifest[key] == whole.manifest[key]
    assert weights(resumed.model) == weights(whole.model) and weights(resumed.best) == weights(whole.best)
    assert {s: loss for s, loss in measured(resumed).items() if s % 2 == 0} == measured(whole)
    assert [line for line in lines(resumed, "samples.jsonl") if line["step"] % 2 == 0] == lines(whole, "samples.jsonl")


@pytest.mark.parametrize("event", ["on_step", "on_evaluate"])
def test_a_signal_at_an_evaluation_takes_effect_after_it(
    event: str, mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]
) -> None:
    whole = mm_train(run="whole", **NEVER)
    mm_watchers.append(Signal(event, 4))
    with pytest.raises(Interrupted):
        mm_train(**NEVER)
    stopped = Workspace(tmp_path).existing("a")
    assert [stopped.manifest[key] for key in ("state", "step", "stop_reason")] == ["interrupted", 4, "SIGTERM"]
    assert sorted(measured(stopped)) == [0, 2, 4]
    mm_watchers.clear()
    resumed = mm_train(resume=True, **NEVER)
    assert measured(resumed) == measured(whole)
    assert weights(resumed.model) == weights(whole.model)
    assert resumed.manifest["stop_reason"] == whole.manifest["stop_reason"]


def test_an_evaluation_that_a_signal_left_out_is_made_up_for(
    mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]
) -> None:
    whole = mm_train(run="whole", **NEVER)
    mm_watchers.append(Signal("on_step", 3))  # agreed with the counts of step 4, whose evaluation is due
    with pytest.raises(Interrupted):
        mm_train(**NEVER)
    stopped = Workspace(tmp_path).existing("a")
    assert stopped.manifest["step"] == 4 and sorted(measured(stopped)) == [0, 2]
    mm_watchers.clear()
    resumed = mm_train(resume=True, **NEVER)
    assert measured(resumed) == measured(whole) and weights(resumed.model) == weights(whole.model)


class Asks(Callback):
    def on_step(self, run: TrainingView) -> None:
        if run.step == 2:
            run.stop.ask("enough")
            run.stop.ask("never heard")


def test_a_callback_can_stop_a_run(mm_train: Train, mm_watchers: list[Callback]) -> None:
    mm_watchers.append(Asks())
    run = mm_train(eval_interval=8)
    assert (run.manifest["state"], run.manifest["step"], run.manifest["stop_reason"]) == ("stopped", 3, "enough")
    resumed = mm_train(eval_interval=8, resume=True)
    assert (resumed.manifest["state"], resumed.manifest["step"]) == ("finished", 8)


# ---- the best model


def test_the_best_model_is_kept_and_can_be_named(mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]) -> None:
    mm_watchers.append(Disturb(after=5))
    run = mm_train(keep_best=True, save_interval=4, keep_checkpoints=9)
    losses = measured(run)
    assert losses[4] < losses[2] < losses[0] and min(losses[6], losses[8]) > losses[4]
    assert run.manifest["best"] == {"step": 4, "loss": losses[4], "model": "a@best"}
    assert weights(run.best) == weights(run.checkpoints / "step-00000004") != weights(run.model)
    workspace = Workspace(tmp_path)
    assert find_model("a@best", workspace) == run.best == find_model(f"{run.path}@best", workspace)
    assert find_model("a@4", workspace) == run.checkpoints / "step-00000004"
    assert find_model("a", workspace) == run.model
    with pytest.raises(UsageError, match=r"has no model a@7\. It has: a@best, a@4, a@8\."):
        find_model("a@7", workspace)
    # what is continued starts with that model's loss
    again = mm_train(run="b", from_="a@best", learning_rate=1e-30, max_steps=1, eval_interval=None)
    assert measured(again)[0] == losses[4]


def test_the_best_model_outlives_its_checkpoint(mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]) -> None:
    mm_watchers.append(Disturb(after=5))
    run = mm_train(keep_best=True, save_interval=2, keep_checkpoints=1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000008"]
    assert json.loads((run.best / "evaluation.json").read_text())["step"] == 4
    generated = mm.generate(mm.load("a@best", backend="cpu", workspace=tmp_path), "say 3", max_new_tokens=3, temperature=0)
    assert len(generated.ids) <= 3


# ---- samples


def test_samples_are_what_the_model_of_that_step_says(
    mm_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"save_interval": 4, "keep_checkpoints": 9, "samples": 2, "sample_prompt": ("say 3", "say, 4")}
    run = mm_train(sample_tokens=6, **options)
    found = lines(run, "samples.jsonl")
    assert [line["step"] for line in found] == [step for step in (0, 2, 4, 6, 8) for _ in range(4)]
    prompts = [line["prompt"] for line in found[:4]]
    assert prompts[:2] == ["say 3", "say, 4"]
    assert all(p.endswith("<|im_start|>assistant\n") and "number" not in p for p in prompts[2:])
    model = mm.load("a@4", backend="cpu", dtype="fp32", workspace=tmp_path)
    for line in found[8:10]:
        expected = mm.generate(model, line["prompt"], max_new_tokens=6, temperature=0)
        assert (line["text"], line["finish_reason"]) == (expected.text, expected.finish_reason)
    assert len({line["text"] for line in found}) > 1
    without = mm_train(run="without")
    assert weights(without.model) == weights(run.model)
    # shown, unless the call is quiet
    assert "sample, step" not in capsys.readouterr().err
    mm.train(
        "sft", workspace=tmp_path, from_="a", run="b", data=tmp_path / "tiny_rows.jsonl", backend="cpu", max_steps=1,
        eval_ratio=0.3, sample_prompt="say 3", sample_tokens=2,
    )  # fmt: skip
    assert "sample, step 0: 'say 3' -> " in capsys.readouterr().err


def test_documents_are_continued_from_their_beginning(mm_train: Train, tmp_path: Path) -> None:
    options = {"eval_interval": None, "max_steps": 1, "samples": 1, "sample_prompt": "one two", "sample_tokens": 4}
    run = mm_train("pretrain", rows=tiny_rows("text"), **options)
    raw, row = lines(run, "samples.jsonl")[:2]
    model = mm.load("a", backend="cpu", dtype="fp32", workspace=tmp_path)
    last = lines(run, "samples.jsonl")[2]
    assert last["text"] == mm.generate(model, "one two", raw=True, max_new_tokens=4, temperature=0).text
    texts = [json.loads(line)["text"] for line in (tmp_path / "tiny_rows.jsonl").read_text().splitlines()]
    plain = row["prompt"].removeprefix("<|im_start|>")
    assert raw["prompt"] == "one two" and plain and any(text.startswith(plain) for text in texts)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_written(mm_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--sample-prompt 'word word .*tokens, but the model's positions leave room for 24"):
        mm_train(sample_prompt="word " * 40, sample_tokens=40, dense_max_position_embeddings=64, max_length=64)
    assert not (tmp_path / "runs").exists()


# ---- continued pretraining


def test_pretraining_goes_on_with_new_data(mm_train: Train) -> None:
    texts = [{"text": f"the number {n} comes before {n + 1}"} for n in range(12)]
    shared = {"log_interval": 1, "warmup_ratio": 0.5, "max_steps": 4, "eval_interval": None}
    base = mm_train("pretrain", rows=texts, **shared)
    new = [{"text": f"{n} is followed by {n + 1}"} for n in range(50, 70)]
    shared |= {"rows": new, "learning_rate": 3e-3}
    on, fresh = mm_train("pretrain", from_="a", run="b", **shared), mm_train("pretrain", run="fresh", **shared)
    # the model's own loss on the new rows, before any step
    still = mm_train("pretrain", from_=str(base.model), run="c", **{**shared, "learning_rate": 1e-30})
    assert measured(on)[0] == measured(still)[0] == pytest.approx(measured(still)[4], abs=1e-6)
    assert measured(on)[0] < measured(fresh)[0]
    rates = [[line["learning_rate"] for line in lines(run) if "learning_rate" in line] for run in (on, fresh)]
    assert rates[0] == rates[1] and rates[0][0] < 3e-3  # a schedule of its own, with its warm-up
    assert on.manifest["tokens"] == sum(line["tokens"] for line in lines(on)[-2:-1]) and on.manifest["step"] == 4
    first = load_file(on.model / "model.safetensors"), load_file(base.model / "model.safetensors")
    assert all(first[0][name].shape == first[1][name].shape and not first[0][name].equal(first[1][name]) for name in first[0])


def test_another_tokenizer_is_refused(mm_train: Train, tmp_path: Path) -> None:
    from mm.testing import tiny_tokenizer

    mm_train()
    other = tmp_path / "other"
    other.mkdir()
    tiny_tokenizer(320).save(other)
    with pytest.raises(UsageError, match=r"--tokenizer .*other.* is not the tokenizer that a was trained with"):
        mm_train(run="b", from_="a", tokenizer=str(other))
    assert not (tmp_path / "runs/b").exists()
    same = mm_train(run="b", from_="a", tokenizer=str(tmp_path / "tiny_tokenizer"), max_steps=1, eval_interval=None)
    assert same.manifest["tokenizer"] == tiny_tokenizer().fingerprint


# ---- what is said


@pytest.mark.parametrize("terminal", ["", "1"])
def test_a_quiet_training_says_nothing(
    terminal: str, mm_train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", terminal)
    run = mm_train(keep_best=True, samples=1, max_steps=4, sample_tokens=2)
    assert capsys.readouterr() == ("", "")
    log = (run.path / "log.txt").read_text(encoding="utf-8")
    assert re.search(r"step 4/4 .*loss ", log) and re.search(r"held out \(5 units\), step 2", log)


BROKEN = """
from mm.core.hooks import hookimpl

@hookimpl
def mm_callbacks(run):
    raise ValueError(f"no watching of {run.select.run}")
"""


def test_a_plugin_that_cannot_watch_is_said_and_noted(
    mm_train: Train, mm_plugins: Plugins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mm_train()
    manager = mm_plugins(broken=BROKEN)
    capsys.readouterr()
    options = {"from_": "a", "run": "b", "data": tmp_path / "tiny_rows.jsonl", "backend": "cpu", "max_steps": 1}
    run = mm.train("sft", workspace=tmp_path, plugins=manager, **options)
    (note,) = [n for n in run.manifest["notes"] if "callbacks" in n]
    plugin, _, why = note.partition(" adds no callbacks: its mm_callbacks raised ")
    assert plugin == f"plugin {tmp_path / 'broken.py'}" and why.startswith("ValueError: no watching of b")
    assert note in capsys.readouterr().err.splitlines()
    assert run.manifest["state"] == "finished"


def test_a_log_interval_that_a_stop_cuts_off_is_kept_until_a_resume_completes_it(mm_train: Train) -> None:
    def recorded(**options: Any) -> RecordedRun:
        return RecordedRun(mm_train(**options).path)

    whole = recorded(run="whole", log_interval=4)
    stopped = recorded(stop_after_steps=6)
    assert list(stopped.losses) == [4, 6] and len(lines(stopped)) == len(stopped.metrics) - 1
    each = recorded(run="each", log_interval=2, stop_after_steps=6)
    assert stopped.losses[6] == pytest.approx(each.losses[6])
    assert repr(stopped) == f"<run {stopped.path}: state stopped, step 6, steps 8, loss {stopped.losses[6]:.4g}>"
    resumed = recorded(resume=True)
    assert resumed.losses == whole.losses and list(whole.losses) == [4, 8]


def test_a_figure_that_is_older_than_the_run_names_its_step(
    mm_train: Train, mm_cli: CommandLine, mm_watchers: list[Callback]
) -> None:
    mm_watchers.append(Signal("on_step", 6))  # takes effect after step 7, without an evaluation
    with pytest.raises(Interrupted):
        mm_train(eval_interval=4)
    figures = mm_cli("runs", "show", "a").out.partition("algorithm ")[0].splitlines()
    shown = {line.split()[0]: line for line in figures}
    assert shown["step"].split() == ["step", "7"] and "(step" not in shown["loss"]
    assert shown["held_out/loss"].endswith("  (step 4)") and shown["learning_rate"].endswith("  (step 4)")
    assert shown["stop_reason"].split() == ["stop_reason", "SIGTERM"] and "error" not in shown
