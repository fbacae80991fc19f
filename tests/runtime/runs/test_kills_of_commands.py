"""Commands other than `mm train` that are killed at chosen file operations: the same command, typed again, makes what it makes
without a kill, and leaves nothing else behind.

The default suite has a sample, `pytest -m kills` all.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from file_operations import Kill
from kill_cases import MODULES, content, new_workspace, shown
from warm_runner import Runner

# command -> (its words, how often it is killed)
COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {
    "run": (("run", "tokenizer", "pretrain", "sft", "convert", "--config", "run.toml"), 50),
    "convert": (("convert", "start", "made"), 15),
    "data make": (("data", "make", "skills", "--out", "made"), 10),
    "data check": (("data", "check", "faulty.jsonl", "--fix", "made.jsonl"), 10),
    "tokenizer train": (("tokenizer", "train", "text.jsonl", "--vocab-size", "300", "--out", "made"), 10),
}
KILLS = [(command, number) for command, (_, count) in COMMANDS.items() for number in range(count)]
_CONFIG = """\
backend = "cpu"
dtype = "fp32"
[tokenizer]
data = ["text.jsonl"]
vocab_size = 300
[pretrain]
arch = "dense"
preset = "tiny"
data = ["text.jsonl"]
max_steps = 4
[sft]
data = ["chat.jsonl"]
max_steps = 4
"""
_TRAINING = """\
global_batch_size = 2
max_length = 128
save_interval = 2
eval_interval = 2
eval_ratio = 0.2
threads = 1
data_workers = 1
"""
_DATED = re.compile(r"\d{8}-\d+")  # in the names of runs


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    warm = Runner(*MODULES)
    yield warm
    warm.close()


def made(workspace: Path) -> dict[str, bytes]:
    """What a command has made: models, tokenizers and files, with the names of runs without their dates; without logs, times and
    records of the workspace."""
    parts = [path for name in ("made", "made.jsonl", "tokenizers", "exports") if (path := workspace / name).exists()]
    models = [(path.parent, path) for path in (workspace / "runs").glob("*/model")]
    files = {f"{path.name}/{name}": data for path in parts if path.is_dir() for name, data in content(path).items()}
    files |= {path.name: path.read_bytes() for path in parts if path.is_file()}
    files |= {f"{run.name}/{name}": data for run, model in models for name, data in content(model).items()}
    return {_DATED.sub("DATE", name): data for name, data in files.items() if not name.endswith("report.json")}


def hidden(workspace: Path) -> set[str]:
    """Temporary files and folders beside what was made. The workspace's own folder may have caches, and a run that was killed
    before its first checkpoint stays in the list of runs as it was."""
    unfinished = [run for run in (workspace / "runs").iterdir() if not (run / "model").exists() and run.name[0] != "."]
    paths = (path for path in workspace.rglob(".*") if not set(unfinished) & set(path.parents))
    names = (path.relative_to(workspace) for path in paths)
    return {str(name) for name in names if name.parts[0] != ".mm" and name.name not in (".lock", ".metadata")}


@pytest.fixture(scope="module")
def whole(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[str], dict[str, bytes]]]:
    """(the workspace before a command, its file operations, what it makes)."""
    root = tmp_path_factory.mktemp("whole")
    before = new_workspace(root / "before", runner)
    settings = _CONFIG.replace("[sft]", _TRAINING + "[sft]") + _TRAINING
    (before / "run.toml").write_text(settings, encoding="utf-8")
    rows = [json.dumps({"text": f"row {n}"}) for n in range(40)]
    (before / "faulty.jsonl").write_text("\n".join([*rows[:20], "{", *rows[20:], *rows[:3]]) + "\n", encoding="utf-8")

    @cache
    def finished(command: str) -> tuple[Path, list[str], dict[str, bytes]]:
        after = shutil.copytree(before, root / command.replace(" ", "-"))
        found = runner(*COMMANDS[command][0], workspace=after)
        assert found["code"] == (command == "data check"), shown(found)  # 1: the file has a bad line
        return before, found["operations"], made(after)

    return finished


def check(command: str, number: int, whole: Callable[[str], Any], runner: Runner, tmp_path: Path) -> None:
    before, operations, expected = whole(command)
    words, count = COMMANDS[command]
    workspace = shutil.copytree(before, tmp_path / "workspace")
    draw = random.Random(f"{command} {number}")
    # every part of the command is hit
    at = 1 + min(len(operations) - 1, int((number + draw.random()) * len(operations) / count))
    kill: Kill = (at, int(10 ** draw.uniform(0, 4.5)) if draw.random() < 0.3 else None)
    found = runner(*words, workspace=workspace, kill=kill)
    assert found["code"] in (-signal.SIGKILL, -signal.SIGXFSZ) or kill[1], shown(found)
    assert runner("runs", workspace=workspace)["code"] == 0
    for _ in range(2):
        found = runner(*words, workspace=workspace)
        assert "Traceback" not in found["err"], shown(found)
    assert made(workspace) == expected, (operations[at - 1], kill, shown(found))
    assert hidden(workspace) == set(), (operations[at - 1], kill)


@pytest.mark.parametrize(("command", "number"), random.Random(3).sample([case for case in KILLS if case[0] != "run"], 4))
def test_a_sample_of_the_kills(command: str, number: int, whole: Callable[[str], Any], runner: Runner, tmp_path: Path) -> None:
    check(command, number, whole, runner, tmp_path)


@pytest.mark.kills
@pytest.mark.parametrize(("command", "number"), KILLS)
def test_a_killed_command_can_be_typed_again(
    command: str, number: int, whole: Callable[[str], Any], runner: Runner, tmp_path: Path
) -> None:
    check(command, number, whole, runner, tmp_path)
