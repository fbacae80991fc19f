"""The names and places of runs: which names are taken, a folder that moves away, leftovers, an order that outlasts the clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from sizes import sizes

import mm
from mm.contracts import Callback, TrainingView
from mm.core.errors import CheckpointError, StorageError, UsageError
from mm.core.workspace import RunFolder, Workspace, check_name
from mm.runtime.models.finding import find_model
from mm.testing.pytest_plugin import CommandLine, Train

SMALL = {**sizes(layers=1), "max_steps": 4, "rows": [{"text": f"number {n}"} for n in range(11)], "run": "a"}
pytestmark = pytest.mark.mm_train("pretrain", **SMALL)


# ---- names

BAD = [
    "", ".", "..", ".hidden", "-rf", "a/b", "a\\b", "a@best", "*", "a?", "[a]", "a\nb", "a\tb", "a\x1b[31m", "a\x00b", "a\x7f",
    "a\u202eb", "a\u200bb", "a\u2028b", "\ufeffa", "a\ud800", "a\udcff", "a\ufffe", " a", "a ", "\u3000", "n" * 201, "模" * 67,
]  # fmt: skip
GOOD = ["a", "my run", "模型-1", "é", "e\u0301", "a.b_c-d+e=f,g", "🚀", "n" * 200, "a;b", "$a", "it's"]


@pytest.mark.parametrize("name", BAD, ids=map(ascii, BAD))
def test_a_name_that_no_run_can_have_is_refused(name: str, mm_train: Train, mm_workspace: Path) -> None:
    for refused in (lambda: Workspace(mm_workspace).run(name), lambda: mm.train("pretrain", resume=True, run=name or "-")):
        with pytest.raises(UsageError, match=r"--run .*: a name has no / ") as caught:
            refused()
        assert str(caught.value).isprintable()
    with pytest.raises(UsageError, match="--run" if name else "x"):
        mm_train(run=name) if name else check_name("--run x", name)
    assert not (mm_workspace / "runs").exists()
    if name not in (".", ".."):  # these are folders
        with pytest.raises(UsageError, match="No model at"):
            find_model(name, Workspace(mm_workspace))


def test_the_folder_of_a_run_of_another_workspace_names_its_model(mm_train: Train, tmp_path: Path) -> None:
    run, here = mm_train(), Workspace(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=rf"It is the folder of a run of another workspace: name its model, {run.model}\.$"):
        find_model(str(run.path), here)
    assert find_model(str(run.model), here) == run.model
    shutil.rmtree(run.model)
    with pytest.raises(UsageError, match=rf"name its model, {run.checkpoints}/"):
        find_model(str(run.path), here)
    with pytest.raises(UsageError, match=r"no config\.json: it is not a model folder\.$"):
        find_model(str(run.path.parent), here)


@pytest.mark.parametrize("name", GOOD)
def test_other_names_are_taken(name: str, mm_workspace: Path) -> None:
    run = Workspace(mm_workspace).run(name)
    run.path.mkdir(parents=True)
    run.update_manifest({"state": "stopped"})
    assert Workspace(mm_workspace).existing(name) == run and Workspace(mm_workspace).runs() == [run]


@given(name=st.text(max_size=80))
def test_every_name_that_is_taken_is_printable_and_safe(name: str) -> None:
    try:
        check_name("--run", name)
    except UsageError as error:
        assert str(error).isprintable()
        return
    assert name == Path(name).name and not name.startswith(("-", ".")) and not set(name) & set("@*?[]\n\t\0")
    name.encode()


@pytest.mark.parametrize("folder", [".mm", "runs"])
def test_a_file_in_the_place_of_a_folder_is_one_message(
    folder: str, mm_train: Train, mm_workspace: Path, mm_cli: CommandLine
) -> None:
    (mm_workspace / folder).write_text("mine")
    with pytest.raises(UsageError, match=rf"{folder} is not a folder: move it away, or set MM_WORKSPACE"):
        mm_train()
    for words in (["runs"], ["runs", "show", "a"], ["generate", "a", "hello"]) if folder == "runs" else ():
        assert f"{folder} is not a folder" in mm_cli(*words, code=2).err
    assert (mm_workspace / folder).read_text() == "mine"


# ---- a folder that is renamed or removed while its run trains


class Move(Callback):
    """Does something to the run's folder after the second step."""

    def __init__(self, folder: Path, how: str) -> None:
        self.folder, self.how = folder, how

    def on_step(self, run: TrainingView) -> None:
        if run.step == 2:
            shutil.rmtree(self.folder) if self.how == "removed" else self.folder.rename(self.folder.with_name("moved"))
            if self.how == "replaced":
                self.folder.mkdir()
                (self.folder / "mine.txt").write_text("mine")

    on_log = on_evaluate = lambda self, run, metrics: None


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
@pytest.mark.parametrize("options", [{}, {"background_save": False}, {"log_interval": 100, "save_interval": None}])
def test_a_folder_that_moves_away_ends_the_run(
    how: str, options: dict[str, object], mm_train: Train, mm_watchers: list[Callback], mm_workspace: Path
) -> None:
    mm_watchers.append(Move(mm_workspace / "runs/a", how))
    with pytest.raises(StorageError, match=r"runs/a, the folder of run a, was renamed or removed while it trained"):
        mm_train(**{"save_interval": 1, "log_interval": 1, "eval_interval": 1, "eval_ratio": 0.2, **options})
    left = sorted(str(path.relative_to(mm_workspace / "runs")) for path in (mm_workspace / "runs").iterdir())
    assert left == {"renamed": ["moved"], "removed": [], "replaced": ["a", "moved"]}[how]
    if how == "replaced":
        assert [path.name for path in (mm_workspace / "runs/a").iterdir()] == ["mine.txt"]
    if how != "removed" and options == {"background_save": False}:
        mm_watchers.clear()
        resumed = mm.train("pretrain", resume=True, run="moved", workspace=mm_workspace, quiet=True)
        assert (resumed.manifest["state"], resumed.manifest["step"]) == ("finished", 4)


# ---- leftovers, order


def test_what_a_killed_creation_left_is_removed(mm_train: Train, mm_workspace: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    runs = mm_workspace / "runs"
    for name in (f".gone.{ended.pid}", f".busy.{os.getppid()}", ".backup.old", ".notes"):
        (runs / name).mkdir(parents=True)
    mm_train()
    assert sorted(path.name for path in runs.iterdir()) == [".backup.old", f".busy.{os.getppid()}", ".notes", "a"]


def test_the_newest_run_is_the_one_created_last(
    mm_train: Train, mm_workspace: Path, monkeypatch: pytest.MonkeyPatch, mm_cli: CommandLine
) -> None:
    now = time.time()
    for name, clock in (("one", now), ("ahead", now + 10**9), ("two", now), ("behind", 0.0), ("three", now)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda clock=clock: clock)
            run = mm_train(run=name, max_steps=1)
        assert Workspace(mm_workspace).newest(("pretrain",)) == run
        assert run.manifest["created"] == clock
    names = [manifest["name"] for manifest in json.loads(mm_cli("runs", "--json").out)]
    assert names == ["three", "behind", "two", "ahead", "one"]


# ---- the finished model


def damage_index(model: Path) -> None:
    (model / "index.json").unlink()


def empty_index(model: Path) -> None:
    (model / "index.json").write_text("{}")


def partial_index(model: Path) -> None:
    entries = json.loads((model / "index.json").read_text())
    (model / "index.json").write_text(json.dumps({"config.json": entries["config.json"]}))


@pytest.mark.parametrize("damage", [damage_index, empty_index, partial_index])
def test_a_model_that_cannot_be_verified_is_not_loaded(damage: object, mm_train: Train, mm_workspace: Path) -> None:
    run = mm_train(keep_best=True, eval_ratio=0.2, eval_interval=2)
    for name, folder in (("a", run.model), ("a@best", run.best), ("a@4", run.checkpoints / "step-00000004")):
        damage(folder)  # type: ignore[operator]
        with pytest.raises(CheckpointError, match=r"index\.json (is missing: the model cannot be verified|is damaged)"):
            mm.load(name, workspace=mm_workspace, backend="cpu")


def test_a_folder_without_an_index_is_reported(mm_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(mm_train().model, tmp_path / "copy", ignore=shutil.ignore_patterns("index.json"))
    capsys.readouterr()
    mm.load(tmp_path / "copy", backend="cpu")
    assert f"{tmp_path / 'copy'}: not verified, it has no index.json" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["model/config.json", "model"])
def test_a_lost_model_is_not_replaced_by_a_checkpoint(lost: str, mm_train: Train, mm_workspace: Path) -> None:
    run: RunFolder = mm_train()
    shutil.rmtree(run.path / lost) if lost == "model" else (run.path / lost).unlink()
    message = r"model/config\.json is missing\. Restore it from a copy, or use another model of the run: a@4\."
    for words in ({"from_": "a", "run": "b"}, {"from_": str(run.path), "run": "b"}):
        with pytest.raises(CheckpointError, match=message):
            mm_train(**words)
    assert find_model("a@4", Workspace(mm_workspace)) == run.checkpoints / "step-00000004"
