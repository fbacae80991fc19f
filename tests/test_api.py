"""The Python API beside training: evaluation, runs, plots, plans."""

from __future__ import annotations

from pathlib import Path

import pytest

import mm
from mm.core.errors import UsageError
from mm.testing.pytest_plugin import CommandLine, Train


def test_the_package_shows_its_functions_and_nothing_else() -> None:
    assert set(dir(mm)) == {
        "convert", "evaluate", "generate", "list_plugins", "load", "plan", "plot", "run", "runs", "train", "__version__",
    }  # fmt: skip
    assert all(getattr(mm, name) for name in dir(mm))


def test_a_run_returns_its_losses_and_can_be_looked_at(mm_train: Train, mm_workspace: Path, mm_cli: CommandLine) -> None:
    mm_train("pretrain", run="base", eval_ratio=0.3, log_interval=1)
    words = {"data": "tiny_rows.jsonl", "backend": "cpu", "max_steps": 3, "log_interval": 1, "eval_ratio": 0.3, "quiet": True}
    run = mm.train("pretrain", from_="base", run="more", global_batch_size=2, **words)
    assert list(run.losses) == [1, 2, 3] and all(loss > 0 for loss in run.losses.values())
    assert list(run.series("held_out/loss")) == [0, 1, 2, 3] and run.series("reward") == {}
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2, 3]
    assert [one.name for one in mm.runs()] == ["more", "base"] and mm.runs()[0].losses == run.losses
    assert mm.plot(["base", "more"], out="both.png").read_bytes().startswith(b"\x89PNG")
    assert mm.plot("more", "loss", out=mm_workspace / "one.png").exists()
    report = mm.evaluate("more", data="tiny_rows.jsonl", backend="cpu", name="here", quiet=True)
    assert report["text"][0]["perplexity"] > 1 and (run.evals / "here.json").exists()
    for wrong in ({}, {"data": "tiny_rows.jsonl", "name": "here"}, {"data": "tiny_rows.jsonl", "limit": 0}):
        with pytest.raises(UsageError):
            mm.evaluate("more", backend="cpu", quiet=True, **wrong)
