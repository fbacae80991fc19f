"""Files of a run that a power cut or an editor has damaged: each is reported, and harms neither the run's history nor others."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from run_files import lines, weights
from sizes import sizes

import mm
from mm.core.errors import CheckpointError, MMError, UsageError
from mm.core.locks import exclusive
from mm.core.run_folder import read_manifest
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.runs.reading import metric_lines, overview
from mm.runtime.training.json_lines import METRICS, rewind_lines
from mm.testing import tiny_run
from mm.testing.pytest_plugin import CommandLine

ROWS = [{"text": f"number {n} " * (1 + n % 5)} for n in range(11)]
SMALL = {
    **sizes(layers=1), "max_steps": 6, "global_batch_size": 3, "log_interval": 1, "learning_rate": 1e-2, "rows": ROWS,
    "eval_ratio": 0.2, "samples": 1, "sample_tokens": 4, "clip_norm": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the runs `a`, stopped at step 4 of 6, and `whole`, which was not stopped."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run(folder, "pretrain", **SMALL, run="a", stop_after_steps=4, save_interval=2)
    tiny_run(folder, "pretrain", **SMALL, run="whole")
    return folder


@pytest.fixture
def stopped(trained: Path, mm_workspace: Path) -> RunFolder:
    """Run `a` of a copy of that workspace, the current one; `other` is beside it."""
    shutil.copytree(trained / "runs/a", mm_workspace / "runs/a")
    shutil.copytree(trained / "runs/whole", mm_workspace / "runs/other")
    return Workspace(mm_workspace).existing("a")


def resume(**options: Any) -> RunFolder:
    return mm.train("pretrain", resume=True, run="a", **options)


# ---- metrics.jsonl and samples.jsonl


TAILS = [
    b"\0" * 300,
    b"{",
    b'{"step": 4, "loss": 1.',
    b"\xff\xfe\n",
    b"7\n",
    b'{"step": "4"}\n',
    b'{"step": 3, "loss": {}}\n',
    b"[" * 10**5,
]


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
def test_a_damaged_line_is_reported_and_skipped(tail: bytes, stopped: RunFolder, mm_cli: CommandLine) -> None:
    expected, path = metric_lines(stopped), stopped.path / METRICS
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(content[0] + b"\0\0\n" + b"".join(content[1:]) + tail)
    assert metric_lines(stopped) == expected
    for words in (["show", "a"], ["diff", "a", "other"], ["plot", "a", "--out", "a.png"]):
        said = mm_cli("runs", *words).err
        assert f"{path}: lines 2, {len(content) + 2} skipped: damaged or incomplete" in said.replace("\n", ""), said


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_resume_repairs_the_lines(name: str, stopped: RunFolder, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stopped.path / name
    path.write_bytes(b"\0" * 7 + b"\n" + path.read_bytes() + b'{"step": 4, "lo')
    resumed = resume()
    assert f"{path}: lines 1, " in capsys.readouterr().err
    whole = Workspace(trained).existing("whole")
    assert weights(resumed) == weights(whole)
    steady = [line for line in lines(resumed, name) if line["step"] != 4 or "learning_rate" in line]
    assert steady == [line for line in lines(whole, name) if line["step"] != 4 or "learning_rate" in line]


def test_rewinding_replaces_the_file_as_a_whole(stopped: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped.path / METRICS
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=METRICS):
            rewind_lines(path, 2)
    assert path.read_bytes() == before and [p.name for p in stopped.path.glob(".*")] == [".lock"]
    rewind_lines(path, 2)
    assert max(line["step"] for line in metric_lines(stopped)) == 2
    assert before.startswith(path.read_bytes())


# ---- run.toml

CHANGES = {
    "learning_rate = 0.01": "learning_rate = 0.02",
    "clip_norm = 0.5": "clip_norm = 0.6",
    "global_batch_size = 3": "global_batch_size = 4",
    "hidden_size = 16": "hidden_size = 24",
    "seed = 42": "seed = 43",
    "save_interval = 2": "save_interval = 3",
}


@pytest.mark.parametrize("old", CHANGES)
def test_a_change_of_run_toml_is_refused(old: str, stopped: RunFolder, mm_cli: CommandLine) -> None:
    path = stopped.path / "run.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, CHANGES[old]))
    said = mm_cli("train", "--resume", "--run", "a", code=2).err
    value, before = CHANGES[old].split(" = ")[1], old.split(" = ")[1]
    assert f"{path} was changed since the run started (" in said and f" is {value}, was {before})" in said
    assert "--from a" in said
    path.write_text("# a remark\n" + path.read_text().replace(CHANGES[old], old))
    assert resume(quiet=True).manifest["state"] == "finished"


@settings(max_examples=25, deadline=None)
@given(keep=st.floats(0, 0.99))
def test_every_cut_of_run_toml_is_an_error(keep: float, trained: Path) -> None:
    run, path = Workspace(trained).existing("a"), trained / "runs/a/run.toml"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * (len(whole.rstrip()) - 1))])
    try:
        with pytest.raises(MMError, match=r"run\.toml(: not valid TOML| is incomplete| was changed)"):
            mm.plan("pretrain", resume=True, run="a", workspace=trained, quiet=True)
    finally:
        path.write_bytes(whole)
    assert run.manifest["settings"]["run"] == "a"


def test_a_missing_run_toml_is_one_message(stopped: RunFolder, mm_cli: CommandLine) -> None:
    (stopped.path / "run.toml").unlink()
    for words in (["train", "--resume", "--run", "a"], ["runs", "show", "a"]):
        said = mm_cli(*words, code=1).err
        assert said.splitlines()[-1].startswith(f"mm: {stopped.path / 'run.toml'}: No such file or directory. Restore it")


def test_evaluation_data_that_moved_is_found_again(stopped: RunFolder, mm_workspace: Path) -> None:
    stopped.path.rename(mm_workspace / "runs/start")
    (mm_workspace / "held.jsonl").write_text('{"text": "a held out row"}\n')
    (mm_workspace / "rows.jsonl").write_text('{"text": "a row to learn"}\n' * 4)
    given = {"from_": "start", "data": "rows.jsonl", "eval_data": "held.jsonl", "max_steps": 6, "run": "a", "quiet": True}
    mm.train("pretrain", backend="cpu", dtype="fp32", stop_after_steps=2, **given)
    (mm_workspace / "held.jsonl").rename("there.jsonl")
    with pytest.raises(UsageError, match=r"held\.jsonl"):
        resume(quiet=True)
    resume(quiet=True, eval_data="there.jsonl", stop_after_steps=4)
    assert resume(quiet=True).manifest["state"] == "finished"


# ---- manifest.json


DAMAGES = [
    b"", b"\0" * 900, b'{"state": "run', b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 10**5, b'{"state": 7}',
    b'{"state": "stopped", "created": "now"}', b'{"state": "stopped", "created": 1e300}',
    b'{"state": "stopped", "created": 1, "data": [7]}', b'{"state": "stopped", "steps": null, "created": 1}',
]  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGES, None], ids=range(len(DAMAGES) + 1))
def test_a_damaged_manifest_harms_no_other_run(damage: bytes | None, stopped: RunFolder, mm_cli: CommandLine) -> None:
    path = stopped.path / "manifest.json"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    listed = mm_cli("runs")
    rows = [line.split()[:3] for line in listed.out.splitlines()[1:]]
    assert rows == [["other", "pretrain", "finished"], ["a", "damaged", "0/?"]]
    ways = "start a new run from its model with --from a, or remove the run with mm runs rm a."
    assert f"{path} cannot be read: " in listed.err and ways in listed.err
    assert [run["state"] for run in json.loads(mm_cli("runs", "--json").out)] == ["finished", "damaged"]
    for words in (["train", "--resume", "--run", "a"], ["runs", "show", "a"]):
        (said,) = mm_cli(*words, code=1).err.splitlines()
        assert said.startswith(f"mm: {path} cannot be read: ") and said.endswith(ways)
    assert "Run a exists" in mm_cli("train", "--algo", "pretrain", "--run", "a", "--data", "skills", code=2).err
    assert "no unfinished run" in mm_cli("train", "--resume", code=2).err
    mm_cli("runs", "show", "other")
    for name in ("other", "a"):  # a model needs no manifest
        assert mm_cli("generate", name, "one", "--max-new-tokens", "2", "--backend", "cpu").code == 0
    mm_cli("runs", "rm", "a", "--yes")
    assert not stopped.path.exists()


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["state", "created", "steps", "data", "best", "x"]), st.none() | st.text() | st.floats()))
def test_a_manifest_is_read_or_refused(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        path.write_text(json.dumps(values))
        try:
            found = read_manifest(path)
        except ValueError:
            return
    assert isinstance(found["state"], str) and not found.keys() & {"steps", "data", "best"}


# ---- the step that a killed run reached


def test_a_killed_run_is_listed_with_the_step_that_it_reached(stopped: RunFolder, mm_cli: CommandLine) -> None:
    stopped.update_manifest({"state": "running", "step": 0, "steps": 9600})
    assert mm_cli("runs").out.splitlines()[2].split()[1:4] == ["pretrain", "interrupted", "4/9600"]
    with (stopped.path / METRICS).open("a") as file:
        file.write('{"step": 40, "loss": 2.0}\n{"step": 41, "lo')
    assert overview(stopped)["step"] == 40
    (stopped.path / METRICS).unlink()  # the checkpoints tell it too
    assert overview(stopped)["step"] == 4
    with exclusive(stopped.path / ".lock", "busy"):
        assert overview(stopped)["state"] == "running"
    shutil.rmtree(stopped.checkpoints)
    assert overview(stopped)["step"] == 0
    with pytest.raises(CheckpointError, match="ended before its first checkpoint"):
        resume(quiet=True)
