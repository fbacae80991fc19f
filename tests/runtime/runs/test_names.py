"""The name of a run: no two processes take one, and every command that is printed can be pasted into a shell."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from processes import start_mm
from run_files import write_rows
from sizes import sizes

import mm
from mm.core.errors import UsageError
from mm.core.locks import exclusive
from mm.core.workspace import RunFolder, Workspace
from mm.testing.pytest_plugin import CommandLine, Train

pytestmark = pytest.mark.mm_train("pretrain", **sizes(layers=1), max_steps=2)
NAME = "试 'one' $two"


def test_trainings_that_start_at_once_take_different_names(mm_train: Train, tmp_path: Path) -> None:
    mm_train(run="start", max_steps=1)
    words = ["train", "--algo", "pretrain", "--from", "start", "--data", tmp_path / "tiny_rows.jsonl", "--max-steps", 1]
    words += ["--backend", "cpu", "--eval-ratio", 0, "--max-length", 128]
    started = [start_mm(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate(timeout=180) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    names = {run.name for run in Workspace(tmp_path).runs()} - {"start"}
    assert len(names) == 3 and all(re.fullmatch(r"pretrain-\d{8}-[123]", name) for name in names)
    assert not list((tmp_path / ".mm/names").iterdir())


def test_a_name_that_another_process_is_starting_is_refused_at_once(mm_train: Train, tmp_path: Path) -> None:
    (tmp_path / ".mm/names").mkdir(parents=True)
    with (
        exclusive(tmp_path / ".mm/names/a.lock", ""),
        pytest.raises(UsageError, match=r"Run a is just being started by another process: choose another --run\."),
    ):
        mm_train(run="a")
    assert mm_train(run="a").manifest["state"] == "finished"


def test_nobody_is_advised_to_remove_a_run_that_trains(mm_train: Train) -> None:
    run = mm_train(run="a", stop_after_steps=1)
    with exclusive(run.path / ".lock", ""), pytest.raises(UsageError) as raised:
        mm_train(run="a")
    assert str(raised.value) == "Run a exists; a process is training it: choose another --run."


def test_ranks_need_a_name(mm_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"Several ranks train one run.*give --run NAME"):
        mm_train()


def commands(text: str) -> list[list[str]]:
    """The words of the commands in a text, as a shell would read them."""
    found = re.findall(r"(?:--resume --run|mm runs rm) .+?(?=$|, or|\.$|; )", text, re.MULTILINE)
    return [shlex.split(command) for command in found]


def test_commands_that_are_printed_are_quoted(mm_train: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mm_train(run=NAME, stop_after_steps=1)
    with pytest.raises(UsageError) as raised:
        mm_train(run=NAME)
    assert commands(str(raised.value)) == [["--resume", "--run", NAME]]
    mm.train("pretrain", resume=True, run=NAME, workspace=tmp_path, max_time=1e-9)
    assert commands(capsys.readouterr().err) == []
    with pytest.raises(UsageError, match=re.escape(f"continue its model with --from {shlex.quote(NAME)}.")):
        mm_train(run=NAME, resume=True)
    with pytest.raises(UsageError) as raised:
        mm_train(run=NAME)
    assert commands(str(raised.value)) == [["mm", "runs", "rm", NAME]]


def test_a_stopped_run_prints_what_continues_it(mm_train: Train, tmp_path: Path, mm_cli: CommandLine) -> None:
    mm_train(run="start", max_steps=1)
    words = ["--from", "start", "--data", "tiny_rows.jsonl", "--max-steps", 2, "--backend", "cpu", "--eval-ratio", 0]
    said = mm_cli("train", "--algo", "pretrain", *words, "--run", NAME, "--stop-after-steps", 1).err
    ((*command,),) = commands(said)
    assert mm_cli("train", *command).code == 0 and RunFolder(tmp_path / "runs" / NAME).manifest["state"] == "finished"


def test_another_setting_on_a_resume_is_told_of_from(mm_train: Train) -> None:
    mm_train(run=NAME, stop_after_steps=1)
    with pytest.raises(UsageError, match=re.escape(f"start a new run with --from {shlex.quote(NAME)}.")):
        mm_train(run=NAME, resume=True, learning_rate=0.5)


def test_models_that_are_measured_together_say_their_data_once(mm_train: Train, mm_cli: CommandLine, tmp_path: Path) -> None:
    for name in ("a", "b"):
        mm_train(run=name)
    data = write_rows(tmp_path / "texts.jsonl", [{"text": f"number {n}"} for n in range(5)])
    said = mm_cli("eval", "a", "b", "--data", data, "--backend", "cpu").err
    assert len([line for line in said.splitlines() if line.startswith("data: ") or "rows" in line]) <= 1, said
    assert len(re.findall("report: ", said)) == 2


def test_a_measurement_that_is_repeated_replaces_its_report(mm_train: Train, mm_cli: CommandLine, tmp_path: Path) -> None:
    run = mm_train(run="a")
    data = write_rows(tmp_path / "good.jsonl", [{"text": f"number {n}"} for n in range(5)])

    def reports() -> list[str]:
        mm_cli("eval", "a", "--data", data, "--backend", "cpu")
        return sorted(path.name for path in run.evals.iterdir())

    assert reports() == ["good.json"]
    first = json.loads((run.evals / "good.json").read_text())
    assert reports() == ["good.json"]
    assert json.loads((run.evals / "good.json").read_text())["date"] >= first["date"]
    write_rows(data, [{"text": "other rows"}])
    assert reports() == ["good-2.json", "good.json"]
