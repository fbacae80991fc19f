"""Callbacks of plugins, and what becomes of a run when one of them, or a tracker, raises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mm.core.errors import UsageError
from mm.core.run_folder import RunFolder
from mm.runtime.runs.plugin_callbacks import plugin_callbacks
from mm.testing.pytest_plugin import CommandLine, Plugins, Train

pytestmark = pytest.mark.mm_train("pretrain", max_steps=4, log_interval=1, eval_ratio=0.5, eval_interval=2, save_interval=2)

CALLBACKS = """
from mm.contracts import Callback, hookimpl

class Watch(Callback):
    def __init__(self, run): self.run = run

@hookimpl
def mm_callbacks({arguments}):
    yield Watch({value})
"""


def test_callbacks_are_asked_one_by_one(mm_plugins: Plugins) -> None:
    manager = mm_plugins(
        watch=CALLBACKS.format(arguments="run", value="run"), blind=CALLBACKS.format(arguments="", value="None"),
        wreck=CALLBACKS.format(arguments="run", value="run.x"),
    )  # fmt: skip
    for _ in range(2):  # said again in the next run of the process
        reported: list[str] = []
        found = plugin_callbacks(manager, "the run", reported.append)  # type: ignore[arg-type]
        (line,) = reported
        assert "wreck.py adds no callbacks: its mm_callbacks raised AttributeError" in line
        assert "no attribute 'x'" in line and "wreck.py:" in line
    assert sorted(str(watch.run) for watch in found) == ["None", "the run"]  # type: ignore[attr-defined]
    assert ["no attribute 'x'" in plugin.error for plugin in manager.broken()] == [True]
    manager.strict = True
    with pytest.raises(UsageError, match="MM_PLUGINS_STRICT"):
        plugin_callbacks(manager, "the run", print)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("    yield Watch(", "    yield Watch or ("), r"<class .*Watch'>, which is not an object of a subclass of .*Callback"),
        (("def __init__", "def on_stp(self): pass\n    def __init__"), "Watch.on_stp: no such event. Did you mean 'on_step'"),
    ],
)
def test_a_callback_that_nothing_would_call_is_said(mm_plugins: Plugins, change: tuple[str, str], message: str) -> None:
    manager = mm_plugins(odd=CALLBACKS.format(arguments="run", value="run").replace(*change))
    reported: list[str] = []
    assert not plugin_callbacks(manager, "the run", reported.append)  # type: ignore[arg-type]
    (line,) = reported
    assert re.search(message, line)


TRACKER = """
from mm.contracts import Callback, Tracker, TrackerSpec, hookimpl

seen = []

@hookimpl
def mm_trackers():
    yield TrackerSpec(name="fragile", summary="A tracker.", target=f"{__name__}:Fragile", always=True)

class Fragile(BASE):
    name = "fragile"

    def __init__(self, config, folder):
        self.folder = folder
        FAILS("__init__")

    def on_start(self, run): FAILS("on_start")
    def on_step(self, run): FAILS("on_step")
    def on_evaluate(self, run, metrics): FAILS("on_evaluate")
    def on_log(self, run, metrics): FAILS("on_log")
    def on_save(self, run, path): FAILS("on_save")
    def on_end(self, run, error): FAILS("on_end")

    def state_dict(self):
        FAILS("state_dict")
        return {"value": object() if "EVENT" == "unsaved" else 1}

    def load_state_dict(self, state): FAILS("load_state_dict")

def FAILS(event):
    seen.append(event)
    if event == "EVENT":
        raise RAISES("no network")
"""


def losses(run: RunFolder) -> list[float]:
    lines = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def undisturbed(mm_train: Train) -> list[float]:
    return losses(mm_train(run="undisturbed"))


@pytest.mark.parametrize(
    ("event", "raises", "base"),
    [
        *((event, "ConnectionError", "Tracker") for event in ("__init__", "on_start", "on_log", "on_end", "state_dict")),
        ("unsaved", "ConnectionError", "Tracker"),
        ("on_step", "SystemExit", "Callback"), ("on_evaluate", "MemoryError", "Tracker"), ("on_save", "OSError", "Tracker"),
    ],
)  # fmt: skip
def test_a_tracker_that_raises_is_left_out_and_the_run_is_finished(
    event: str, raises: str, base: str, mm_plugins: Plugins, mm_train: Train, undisturbed: list[float]
) -> None:
    source = TRACKER.replace("BASE", base).replace("EVENT", event).replace("RAISES", raises)
    mm_plugins(fragile=source)
    run = mm_train(run="run")
    assert run.manifest["state"] == "finished" and losses(run) == undisturbed
    (note,) = [note for note in run.manifest["notes"] if "fragile" in note]
    assert "fragile.py" in note and (raises in note or event == "unsaved")
    if event != "unsaved":
        line = next(n for n, text in enumerate(source.splitlines(), 1) if "raise " in text)
        assert f"no network ({mm_train.workspace / 'fragile.py'}:{line})" in note


def test_a_tracker_that_is_left_out_is_given_nothing_more_and_can_be_resumed(mm_plugins: Plugins, mm_train: Train) -> None:
    import sys

    source = TRACKER.replace("BASE", "Tracker").replace("EVENT", "load_state_dict").replace("RAISES", "KeyError")
    mm_plugins(fragile=source)
    run = mm_train(run="run", stop_after_steps=2)
    assert "state_dict" in sys.modules["mm_plugin_fragile"].seen
    sys.modules["mm_plugin_fragile"].seen.clear()
    mm_train(run="run", resume=True, stop_after_steps=3)
    assert sys.modules["mm_plugin_fragile"].seen[-1] == "load_state_dict"
    run = mm_train(run="run", resume=True, plugins=mm_plugins("no:fragile"))  # the note stays
    assert run.manifest["state"] == "finished"
    assert [note for note in run.manifest["notes"] if "its load_state_dict raised KeyError" in note]


@pytest.mark.parametrize("required", [True, False])
def test_a_callback_says_whether_the_run_needs_it(required: bool, mm_plugins: Plugins, mm_train: Train) -> None:
    source = CALLBACKS.format(arguments="run", value="run").replace(
        "    def __init__", f"    required = {required}\n    def on_step(self, run): 1 / (run.step - 3)\n    def __init__"
    )
    mm_plugins(watch=source)
    if required:
        with pytest.raises(ZeroDivisionError):
            mm_train(run="run")
        return
    run = mm_train(run="run")
    assert run.manifest["state"] == "finished"
    (note,) = [note for note in run.manifest["notes"] if "Watch" in note]
    left_out = r"Watch of plugin .*watch\.py is left out from here on: its on_step raised ZeroDivisionError: .*watch\.py:6\)"
    assert re.fullmatch(left_out, note)


def test_the_record_of_the_run_itself_is_required(
    mm_train: Train, mm_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm.plugins.trackers.jsonl import tracker

    def full(path: Path, rows: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(tracker, "append_lines", full)
    with pytest.raises(Exception, match="No space left on device"):
        mm_train(run="run")


def test_it_is_said_once_on_the_command_line(mm_plugins: Plugins, mm_cli: CommandLine) -> None:
    mm_plugins(fragile=TRACKER.replace("BASE", "Tracker").replace("EVENT", "on_log").replace("RAISES", "ValueError"))
    Path("rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    small = ("--dense-hidden-size", 8, "--dense-num-hidden-layers", 1, "--global-batch-size", 2, "--eval-ratio", 0)
    line = ("train", "--algo", "pretrain", "--preset", "tiny", "--data", "rows.jsonl", "--run", "run", "--log-interval", 1)
    told = mm_cli(*line, "--max-steps", 3, *small, "--backend", "cpu", "--max-length", 16)
    assert told.err.count("is left out from here on: its on_log raised ValueError") == 1
