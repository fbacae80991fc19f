"""A training and its process: what is global stays as it was, and what a plugin does to the process does not break the run."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import weights
from sizes import sizes

import mm
from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.errors import MMError, UsageError
from mm.core.workspace import Workspace
from mm.testing.pytest_plugin import CommandLine, Plugins, Train

pytestmark = pytest.mark.mm_train("pretrain", **sizes(layers=1), max_steps=3, run="a", log_interval=1)


def world() -> dict[str, Any]:
    """Everything global that a training may touch."""
    return {
        "python": random.getstate(), "numpy": str(np.random.get_state()), "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(), "folder": os.getcwd(),
        "precision": torch.get_float32_matmul_precision(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark, "grad": torch.is_grad_enabled(),
    }  # fmt: skip


class Meddler(Callback):
    """Changes everything global."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def on_step(self, run: TrainingView) -> None:
        random.seed(run.step)
        np.random.seed(run.step)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        os.chdir("/")
        if self.error:
            raise self.error


@pytest.fixture
def peculiar() -> Iterator[None]:
    """A caller with settings of its own."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("error", [None, RuntimeError("a bug"), SystemExit(3), KeyboardInterrupt()])
def test_a_training_leaves_its_caller_everything_as_it_was(
    error: BaseException | None, peculiar: None, mm_train: Train, mm_watchers: list[Callback]
) -> None:
    mm_watchers.append(Meddler(error))
    before = world()
    if error is None:
        mm_train()
    else:
        with pytest.raises((RuntimeError, MMError)):
            mm_train()
    assert world() == before


def test_what_its_caller_has_set_does_not_change_a_training(mm_train: Train, peculiar: None) -> None:
    strange = mm_train()
    torch.set_default_dtype(torch.float32)
    assert weights(mm_train(run="b")) == weights(strange)


class Nested(Callback):
    """Starts another training in the middle of one."""

    def __init__(self, start: Any) -> None:
        self.start, self.errors = start, list[str]()

    def on_step(self, run: TrainingView) -> None:
        def other() -> None:
            try:
                self.start()
            except UsageError as error:
                self.errors.append(str(error))

        if run.step == 1:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            other()


def test_a_second_training_at_once_is_refused_by_name(mm_train: Train, mm_watchers: list[Callback], tmp_path: Path) -> None:
    alone = mm_train(run="alone")
    mm_watchers.append(nested := Nested(lambda: mm_train(run="b")))
    run = mm_train()
    assert len(nested.errors) == 2, "from another thread and from the same one"
    assert all("Run b cannot start: this process is training run a" in text for text in nested.errors)
    assert weights(run) == weights(alone)
    assert not (tmp_path / "runs/b").exists()
    assert mm_train(run="b").manifest["state"] == "finished"


def test_a_run_trains_in_a_thread_of_its_caller(mm_train: Train) -> None:
    main, made = mm_train(), []
    thread = threading.Thread(target=lambda: made.append(mm_train(run="b")))
    thread.start()
    thread.join()
    assert weights(made[0]) == weights(main)


# ---- plugins

REWARD = """
import os, sys
{top}
calls = 0
def score(rows, completions):
    global calls
    calls += 1
    {body}
    return [float(len(text) % 3) for text in completions]
"""
CALLBACKS = """
import sys
from mm.core.hooks import hookimpl
from mm.contracts import Callback

class Ends(Callback):
    def on_step(self, run):
        {on_step}

@hookimpl
def mm_callbacks(run):
    {body}
    return [Ends()]
"""
DRAWING = {"max_steps": 2, "max_new_tokens": 4, "num_generations": 2, "reward": "python", "python_function": Path("own.py:score")}


def drawing(mm_train: Train, tmp_path: Path, *, top: str = "", body: str = "pass", **options: Any) -> Any:
    (tmp_path / "own.py").write_text(REWARD.format(top=top, body=body))
    return mm_train("grpo", **{**DRAWING, **options})


@pytest.mark.parametrize("where", ["top", "body"])
def test_a_reward_that_changes_the_folder_does_not_move_the_run(where: str, mm_train: Train, tmp_path: Path) -> None:
    """The workspace is the current folder, by its relative name, as it is for the command line."""
    (tmp_path / "elsewhere").mkdir()
    options = {"save_interval": 1, "eval_ratio": 0.3, "eval_interval": 1, "keep_best": True, "samples": 1}
    plain = drawing(mm_train, tmp_path, run="plain", **options)
    code = {where: f"os.chdir({str(tmp_path / 'elsewhere')!r})"}
    run = drawing(mm_train, tmp_path, workspace=Path("."), **code, **options)
    assert os.getcwd() == str(tmp_path) and run.path == Path("runs/a")
    assert run.manifest["state"] == "finished" and weights(run) == weights(plain)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert sorted(p.name for p in run.path.iterdir()) == sorted(p.name for p in plain.path.iterdir())


def test_a_reward_cannot_change_what_others_judge(mm_train: Train, tmp_path: Path) -> None:
    plain = drawing(mm_train, tmp_path, run="plain")
    body = "completions.reverse(); completions.clear(); completions += ['x'] * len(rows); rows[0].fields.clear()"
    scores = "; return [0.0] * len(rows)"
    greedy = drawing(mm_train, tmp_path, run="b", body=body + scores, reward=("python", "length:0.0"))
    texts = [line["completion"] for line in _lines(greedy)]
    assert texts[:4] == [line["completion"] for line in _lines(plain)][:4]


def _lines(run: Any) -> list[Any]:
    from run_files import lines

    return lines(run, "rollouts.jsonl")


def test_a_reward_that_exits_is_named_with_its_row(mm_train: Train, tmp_path: Path) -> None:
    with pytest.raises(MMError, match=r"Reward 'python' failed on .*tiny_rows\.jsonl:\d+: SystemExit: 3 \(own\.py:\d+\)"):
        drawing(mm_train, tmp_path, body="sys.exit(3)")
    assert not (tmp_path / "runs" / "a").exists()  # no step was taken: the mended command has the name again
    drawing(mm_train, tmp_path, body="pass")
    assert Workspace(tmp_path).existing("a").manifest["state"] == "finished"


def test_hooks_that_exit_are_named(mm_train: Train, mm_plugins: Plugins) -> None:
    mm_plugins(leaves=CALLBACKS.format(on_step="pass", body="sys.exit(3)"))
    run = mm_train()
    assert run.manifest["state"] == "finished"
    assert any("adds no callbacks: its mm_callbacks raised SystemExit: 3" in note for note in run.manifest["notes"])


def test_a_callback_that_exits_ends_the_run_with_a_message(mm_cli: CommandLine, mm_plugins: Plugins, mm_train: Train) -> None:
    mm_train(run="start", max_steps=1)
    mm_plugins(exits=CALLBACKS.format(on_step="sys.exit(0)", body="pass"))
    words = ["--from", "start", "--data", "tiny_rows.jsonl", "--max-steps", 2, "--backend", "cpu", "--run", "a"]
    ended = mm_cli("train", "--algo", "pretrain", *words, code=1)
    assert "exits.py:8 called sys.exit(0): a plugin must raise an exception instead." in ended.err.splitlines()[-1]
    assert mm_cli("runs", "show", "a").out.count("failed")


def test_an_interrupt_at_import_names_the_plugin(mm_cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "rude.py").write_text("raise KeyboardInterrupt\n")
    ended = mm_cli("-p", tmp_path / "rude.py", "runs", code=130)
    assert ended.err.startswith(f"mm: interrupted, while plugin {tmp_path / 'rude.py'} was imported. Start again with: mm -p ")


def test_the_api_needs_no_main_thread_for_its_plan(mm_train: Train) -> None:
    assert "saving" in mm.plan("pretrain", arch="dense", preset="tiny", data="classics:en", backend="cpu", quiet=True)
