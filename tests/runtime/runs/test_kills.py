"""Trainings that are killed at chosen file operations, and runs whose files are damaged: each ends as if nothing had happened,
or in one message that says how to continue.

The default suite has a sample, `pytest -m kills` all.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from file_operations import Kill
from kill_cases import KINDS, MODULES, PHASES, RESUME, Whole, content, damage, new_workspace, phase, result, shown, words
from warm_runner import Runner

KILLS = [(kind, number) for number in range(60) for kind in KINDS]
DAMAGES = [(kind, number) for number in range(30) for kind in KINDS]
SAMPLED = ("pretrain", "grpo")  # in the default suite, whose every further kind costs a training that is left alone
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
GENERATE = ("say", "--backend", "cpu", "--max-new-tokens", "3", "--temperature", "0")


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    warm = Runner(*MODULES)
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def whole(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """The training of a kind that nothing happened to."""
    root = tmp_path_factory.mktemp("whole")
    before = new_workspace(root / "before", runner)

    @cache
    def trained(kind: str) -> Whole:
        after = shutil.copytree(before, root / kind)
        found = runner(*words(kind), "--no-background-save", workspace=after)
        assert found["code"] == 0, shown(found)
        return Whole(kind, before, after, found["operations"], result(after))

    return trained


def ended(found: dict[str, Any]) -> dict[str, Any]:
    """The end of a command that was not killed: right, or with one message."""
    messages = [line for line in found["err"].splitlines() if line.startswith("mm: ")]
    assert found["code"] in (0, 1, 2) and "Traceback" not in found["err"], shown(found)
    assert found["code"] == 0 or len(messages) == 1, shown(found)
    return found


def finish(kind: str, runner: Runner, workspace: Path, kill: Kill | None) -> None:
    """Type the command of the training again and do what it says, until the run is finished."""
    for _ in range(6):
        found = ended(runner(*words(kind), workspace=workspace))
        if found["code"] == 0 or "it is finished" in found["err"]:
            return
        if "--resume --run a" in found["err"]:
            found = runner(*RESUME, workspace=workspace, kill=kill)
            assert (kill and found["code"] in KILLED) or ended(found)["code"] == 0, shown(found)
            kill = None
        else:
            assert "mm runs rm a" in found["err"], shown(found)
            assert "mm runs rm a" in ended(runner(*RESUME, workspace=workspace))["err"]
            assert ended(runner("runs", "rm", "a", "--yes", workspace=workspace))["code"] == 0
    raise AssertionError(shown(found))


def check_kill(kind: str, number: int, whole: Callable[[str], Whole], runner: Runner, tmp_path: Path) -> None:
    expected = whole(kind)
    workspace = shutil.copytree(expected.before, tmp_path / "workspace")
    first, second = expected.draw(number)
    saving = "--background-save" if number % 2 else "--no-background-save"
    found = runner(*words(kind), saving, workspace=workspace, kill=first)
    assert found["code"] in KILLED or (first[1] and found["code"] == 0), shown(found)
    assert ended(runner("runs", workspace=workspace))["code"] == 0
    finish(kind, runner, workspace, second)
    ended_as = result(workspace)
    for part, value in expected.result.items():
        assert ended_as.get(part) == value, (found["operations"][-1], first, second, part)


def check_damage(kind: str, number: int, whole: Callable[[str], Whole], runner: Runner, tmp_path: Path) -> None:
    expected, draw = whole(kind), random.Random(f"damage {kind} {number}")
    workspace = shutil.copytree(expected.before, tmp_path / "workspace")
    operations = expected.operations
    saved = next(n for n, one in enumerate(operations, 1) if one == "os.rename runs/a/checkpoints/step-00000002")
    if number % 2:
        runner(*words(kind), "--no-background-save", workspace=workspace, kill=(draw.randrange(saved + 1, len(operations)), None))
    else:
        assert runner(*words(kind), "--stop-after-steps", "4", workspace=workspace)["code"] == 0
    other, answer = content(workspace / "runs/start"), runner("generate", "start", *GENERATE, workspace=workspace)
    what = damage(workspace, draw)
    assert ended(runner("runs", workspace=workspace))["code"] == 0, what
    for command in (("runs", "show", "a"), ("generate", "a", *GENERATE)):
        ended(runner(*command, workspace=workspace))
    resumed = ended(runner(*RESUME, workspace=workspace))
    if resumed["code"] == 0:
        found = result(workspace)
        assert found["model"] == expected.result["model"], (what, shown(resumed))
        assert set(found["names"]) <= set(expected.result["names"]), (what, shown(resumed))
        if not what.endswith("metrics.jsonl"):
            assert found["metrics.jsonl"] == expected.result["metrics.jsonl"], (what, shown(resumed))
    else:
        assert not what.partition(" ")[2].startswith(".mm/"), (what, shown(resumed))  # a cache is made again
    assert content(workspace / "runs/start") == other
    again = runner("generate", "start", *GENERATE, workspace=workspace)
    assert (again["code"], again["out"]) == (0, answer["out"]), what
    assert ended(runner("runs", "rm", "a", "--yes", workspace=workspace))["code"] == 0, what


@pytest.mark.kills
def test_the_kills_hit_every_phase(whole: Callable[[str], Whole]) -> None:
    hit = Counter(phase(whole(kind).operations[whole(kind).draw(number)[0][0] - 1]) for kind, number in KILLS)
    assert set(hit) == set(PHASES) and min(hit.values()) >= 5, hit


@pytest.mark.parametrize(("kind", "number"), random.Random(1).sample([case for case in KILLS if case[0] in SAMPLED], 5))
def test_a_sample_of_the_kills(kind: str, number: int, whole: Callable[[str], Whole], runner: Runner, tmp_path: Path) -> None:
    check_kill(kind, number, whole, runner, tmp_path)


@pytest.mark.parametrize(("kind", "number"), random.Random(1).sample([case for case in DAMAGES if case[0] in SAMPLED], 3))
def test_a_sample_of_the_damages(kind: str, number: int, whole: Callable[[str], Whole], runner: Runner, tmp_path: Path) -> None:
    check_damage(kind, number, whole, runner, tmp_path)


@pytest.mark.kills
@pytest.mark.parametrize(("kind", "number"), KILLS)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    kind: str, number: int, whole: Callable[[str], Whole], runner: Runner, tmp_path: Path
) -> None:
    check_kill(kind, number, whole, runner, tmp_path)


@pytest.mark.kills
@pytest.mark.parametrize(("kind", "number"), DAMAGES)
def test_a_damaged_run_ends_in_one_message_or_right(
    kind: str, number: int, whole: Callable[[str], Whole], runner: Runner, tmp_path: Path
) -> None:
    check_damage(kind, number, whole, runner, tmp_path)
