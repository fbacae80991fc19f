"""The loop: what a step computes, what it never does, what it says and when it stops."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from run_files import held_out, lines, logged
from safetensors.torch import load_file
from sessions import built
from sizes import sizes
from torch.utils._python_dispatch import TorchDispatchMode

from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.errors import MMError
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.runtime.data.order import split_held_out
from mm.runtime.models.folder import load_model_folder
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.runs.manifest import Session
from mm.testing.pytest_plugin import Train

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"number {n} " * (1 + n % 5)}]}
    for n in range(11)
]  # fmt: skip
SMALL = {**sizes(), "max_steps": 4, "global_batch_size": 3, "log_interval": 2, "learning_rate": 1e-2, "run": "a"}
pytestmark = pytest.mark.mm_train("sft", rows=ROWS, **SMALL)


def continued(plugins: PluginManager, workspace: Path, **options: Any) -> Session:
    """The parts of another training that continues run a, not started."""
    settings = {name: value for name, value in SMALL.items() if not name.startswith("dense_")}
    given = {**settings, "algo": "sft", "from_": "a", "run": "b", "data": workspace / "tiny_rows.jsonl", **options}
    return built(plugins, workspace, **given)


# ---- a step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_cutting_a_batch_changes_nothing_but_rounding(optimizer: str, mm_train: Train) -> None:
    whole = mm_train(optimizer=optimizer, micro_batch_tokens=8192)
    cut = mm_train(optimizer=optimizer, micro_batch_tokens=1, run="cut")
    for one, other in zip(logged(whole), logged(cut), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    first, last = (load_file(run.model / "model.safetensors") for run in (whole, cut))
    bound = 1e-4 if optimizer == "adamw" else 1e-2  # Muon's products are bfloat16
    assert all((first[n] - last[n]).norm() < bound * (1 + first[n].norm()) for n in first)


def test_a_batch_without_targets_gives_no_nan(mm_train: Train, tmp_path: Path, plugins: PluginManager) -> None:
    mm_train()
    trainer = continued(plugins, tmp_path).trainer
    before = {n: p.detach().clone() for n, p in trainer.state.roles["policy"].model.named_parameters()}
    units = [masked(unit) for unit in trainer.state.feed.next()]
    trainer.train_step(units)
    trainer.check()
    assert trainer.log_values()["grad_norm"] == 0.0
    for name, parameter in trainer.state.roles["policy"].model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - (1e-4 if decayed(name) else 0)))


def masked(unit: Unit) -> Unit:
    sequences = tuple(Tokens(s.ids, {"learn": torch.zeros(len(s), dtype=torch.bool)}) for s in unit.sequences)
    return attrs.evolve(unit, sequences=sequences)


def decayed(name: str) -> bool:
    return "norm" not in name and "embed" not in name and "lm_head" not in name


class NoSync(TorchDispatchMode, Callback):  # type: ignore[misc]
    """Counts what makes the host wait for a device, from the first step until the last but one."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.calls = self.waits = 0

    def on_start(self, run: TrainingView) -> None:
        self.__enter__()

    def on_step(self, run: TrainingView) -> None:
        self.steps += 1
        if self.steps == 3:
            self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        self.waits += func.overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


def test_steps_between_logs_never_synchronise(mm_train: Train, mm_watchers: list[Callback]) -> None:
    fused, muon = NoSync(), NoSync()
    mm_watchers.append(fused)
    mm_train(log_interval=100, micro_batch_tokens=40)
    assert fused.steps == 4 and fused.calls > 1000
    assert fused.waits == 0
    mm_watchers[:] = [muon]  # the stated exception, which also shows that a wait would be seen
    mm_train(log_interval=100, optimizer="muon", run="muon")
    assert muon.waits >= 3


# ---- a loss that is no number


class Poison(Callback):
    """Writes a value into a weight after a step, and keeps the weights of each step from then on."""

    def __init__(self, after: int, value: float) -> None:
        self.after, self.value, self.seen = after, value, []  # type: ignore[var-annotated]

    def on_step(self, run: TrainingView) -> None:
        model = run.roles["policy"].model
        if run.step == self.after:
            with torch.no_grad():
                dict(model.named_parameters())["model.layers.1.mlp.down_proj.weight"][0, 0] = self.value
        if run.step >= self.after:
            self.seen.append({n: p.detach().clone() for n, p in model.named_parameters()})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_step_is_named_and_nothing_after_it_is_learned(
    optimizer: str, value: float, mm_train: Train, tmp_path: Path, plugins: PluginManager, mm_watchers: list[Callback]
) -> None:
    poison = Poison(2, value)
    mm_watchers.append(poison)
    with pytest.raises(MMError) as raised:
        mm_train(optimizer=optimizer, max_steps=20, log_interval=5)
    message = str(raised.value)
    assert message.startswith("Step 3 gave a non-finite gradient: the first layer with a non-finite output is ")
    assert "policy.model.layers.1.mlp.down_proj (rows " in message and "--learning-rate" in message
    rows = built_rows(tmp_path, plugins, mm_train)
    assert f"(rows {rows})" in message
    assert len(poison.seen) == 4
    for later in poison.seen[1:]:
        assert all(torch.equal(later[n].nan_to_num(), poison.seen[0][n].nan_to_num()) for n in later)
    manifest = Workspace(tmp_path).existing("a").manifest
    assert (manifest["state"], manifest["error"]) == ("failed", message)


def built_rows(workspace: Path, plugins: PluginManager, mm_train: Train) -> str:
    """Where the rows of the third step stand, from the order alone."""
    mm_train(run="clean", max_steps=1)
    feed = continued(plugins, workspace, from_="clean", eval_ratio=0.0).trainer.state.feed
    units = [feed.next() for _ in range(3)][2]
    return ", ".join(f"{workspace / 'tiny_rows.jsonl'}:{row + 1}" for row in sorted({u.row_index for u in units}))


# ---- what is measured


def test_metrics_are_written_a_line_an_interval(mm_train: Train) -> None:
    run = mm_train(max_steps=5, eval_ratio=0.3, eval_interval=2, schedule="linear", min_learning_rate_ratio=0.0)
    assert [(line["step"], "loss" in line) for line in lines(run)] == [
        (0, False), (2, True), (2, False), (4, True), (4, False), (5, True), (5, False)
    ]  # fmt: skip
    steps = logged(run)
    assert all(line.keys() == {"step", "learning_rate", "tokens", "grad_norm", "loss", "nll"} for line in steps)
    timed = [line for line in map(json.loads, (run.path / "metrics.jsonl").open(encoding="utf-8")) if "loss" in line]
    assert len(timed) == len(steps) and all(math.isfinite(line["seconds"]) for line in timed)
    assert [line["learning_rate"] for line in steps] == pytest.approx([8e-3, 4e-3, 2e-3])
    losses = [line["held_out/loss"] for line in held_out(run)]
    assert losses[-1] < losses[0]
    assert all(math.isfinite(value) for line in lines(run) for value in line.values())
    assert run.manifest["tokens"] == steps[-1]["tokens"]


def test_held_out_measures_are_the_formulas_in_float64(mm_train: Train, tmp_path: Path, plugins: PluginManager) -> None:
    mm_train(eval_ratio=0.4)
    made = continued(plugins, tmp_path, eval_ratio=0.4, micro_batch_tokens=60)
    measured = made.trainer._evaluate(made.trainer.state)
    store = made.corpus.store
    _, rows = split_held_out(store, 0.4, 42)
    assert 1 < len(rows) < len(ROWS)
    model = load_model_folder(plugins, tmp_path / "runs/a/model", made.backend).model.double()
    total, count, size = 0.0, 0, 0
    for row in rows:
        unit = store.unit(int(row))
        (sequence,) = unit.sequences
        with torch.no_grad():
            logits, _ = model(pack([unit]), head=lambda hidden, weight: hidden @ weight.T)
        logprobs = logits.log_softmax(-1)
        for place in range(1, len(sequence)):
            if sequence.fields["learn"][place]:
                token = int(sequence.ids[place])
                total -= logprobs[place - 1, token].item()
                count += 1
                size += int(made.loaded.tokenizer.token_bytes[token])
    assert measured["loss"] == pytest.approx(total / count, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert measured["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    # the answers' bytes, counted in the text: their end marks are none, or a few
    answers = sum(len(ROWS[store.unit(int(r)).row_index]["messages"][1]["content"].encode()) for r in rows)
    assert answers <= size <= answers + 20 * len(rows)


# ---- events and stopping


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, run: TrainingView) -> None:
        self.events.append("start")

    def on_step(self, run: TrainingView) -> None:
        self.events.append(f"step {run.step}")

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        self.events.append(f"log {metrics['step']}")

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        self.events.append("evaluate")

    def on_save(self, run: TrainingView, path: Path) -> None:
        self.events.append(f"save {path.name}{'' if (path / 'index.json').exists() else ' (not there)'}")

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        self.events.append(f"end {error}")


def test_callbacks_hear_of_everything_in_order(mm_train: Train, mm_watchers: list[Callback]) -> None:
    recorder = Recorder()
    mm_watchers.append(recorder)
    mm_train(max_steps=3, eval_ratio=0.3, eval_interval=3, save_interval=2, background_save=False)
    assert recorder.events == [
        "start", "evaluate", "step 1", "step 2", "log 2", "save step-00000002", "step 3", "log 3", "evaluate",
        "save step-00000003", "end None",
    ]  # fmt: skip


class Broken(Callback):
    def on_step(self, run: TrainingView) -> None:
        raise RuntimeError("a bug in a callback")


def test_an_error_ends_the_run_and_is_told(mm_train: Train, tmp_path: Path, mm_watchers: list[Callback]) -> None:
    recorder = Recorder()
    mm_watchers += [recorder, Broken()]
    with pytest.raises(RuntimeError, match="a bug in a callback"):
        mm_train()
    assert recorder.events == ["start", "step 1", "end a bug in a callback"]
    manifest = Workspace(tmp_path).existing("a").manifest
    assert (manifest["state"], manifest["error"]) == ("failed", "a bug in a callback")


@pytest.mark.parametrize(("stop", "steps"), [({"stop_after_steps": 3}, 3), ({"max_time": 1e-9}, 1)])
def test_stopping_early_does_not_move_the_schedule(stop: dict[str, float], steps: int, mm_train: Train) -> None:
    whole = mm_train(log_interval=1, max_steps=6, warmup_ratio=0.4)
    short = mm_train(log_interval=1, max_steps=6, warmup_ratio=0.4, run="short", **stop)
    assert (short.manifest["state"], short.manifest["step"], short.manifest["steps"]) == ("stopped", steps, 6)
    ((option, value),) = stop.items()
    assert short.manifest["stop_reason"] == f"--{option.replace('_', '-')} {value:g}"
    assert whole.manifest["stop_reason"] == "the end of the schedule"
    rates = [line["learning_rate"] for line in logged(whole)]
    assert len(rates) == 6 and [line["learning_rate"] for line in logged(short)] == rates[:steps]
    assert (short.model / "model.safetensors").exists()


def test_epochs_give_the_horizon(mm_train: Train) -> None:
    run = mm_train(max_steps=None, epochs=2, global_batch_size=4)
    assert (run.manifest["steps"], run.manifest["step"]) == (6, 6)  # 22 rows, 4 a step


# ---- precision and compilation


def test_bf16_trains_with_float32_weights(mm_train: Train) -> None:
    run, exact = mm_train(dtype="bf16", max_steps=6), mm_train(run="exact", max_steps=6)
    assert run.manifest["backend"]["dtype"] == "bf16"
    assert {t.dtype for t in load_file(run.model / "model.safetensors").values()} == {torch.float32}
    losses, others = ([line["loss"] for line in logged(r)] for r in (run, exact))
    assert losses != others and losses == pytest.approx(others, rel=2e-2)
    assert losses[-1] < losses[0]


def test_without_a_compiler_the_run_goes_on_and_says_so(mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = mm_train()
    monkeypatch.setattr(shutil, "which", lambda name, *args, **kwargs: None)
    asked = mm_train(compile=True, run="compiled")
    assert [n for n in asked.manifest["notes"] if n.startswith("not compiled: inductor needs a C++ compiler")]
    assert not [n for n in eager.manifest["notes"] if "compiled" in n]
    assert (asked.model / "model.safetensors").read_bytes() == (eager.model / "model.safetensors").read_bytes()
