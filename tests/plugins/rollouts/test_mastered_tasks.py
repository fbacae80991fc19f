"""Equal rewards and a low entropy are reported while the policy is not good, and not once it mostly gets the best reward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import drawing
import pytest
from run_files import series

import mm
from mm.contracts import Reward
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import RewardSpec
from mm.core.workspace import RunFolder
from mm.runtime.text.rows import Row
from mm.testing.pytest_plugin import Train

TINY = {"num_generations": 4, "max_new_tokens": 8, "global_batch_size": 4, "log_interval": 1}
pytestmark = [
    pytest.mark.mm_plugins("drawing"),
    pytest.mark.mm_train("grpo", rows=drawing.PROMPTS, **drawing.SMALL, **TINY),
]


class Scripted(Reward):
    """The next rewards of `SCRIPT` for each rollout: for the first completions so many, for the others the last one."""

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        given = SCRIPT.pop(0) if len(SCRIPT) > 1 else SCRIPT[0]
        return [*given, *[given[-1]] * len(completions)][: len(completions)]


SCRIPT: list[list[float]] = []


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    yield RewardSpec(name="scripted", summary="Scripted.", target=f"{__name__}:Scripted")


def told(run: RunFolder) -> list[str]:
    return [name for name in ("no_spread", "entropy") for note in run.manifest["notes"] if f": {name} is " in note]


@pytest.mark.parametrize(
    ("script", "below", "warned"),
    [
        # one failure, and then all is right: every group has equal rewards, and nothing is wrong
        ([[0.0, 1.0], [1.0], [1.0]], [1 / 16, 0.0, 0.0], []),
        # the best reward was met once, and the policy has settled on another
        ([[1.0, 0.0], [0.0], [0.0]], [15 / 16, 1.0, 1.0], ["no_spread"]),
        # all rewards are equal from the start: nobody knows if that is good, and nothing can be learned
        ([[1.0]], [1.0, 1.0, 1.0], ["no_spread"]),
        ([[-2.0]], [1.0, 1.0, 1.0], ["no_spread"]),
    ],
)
def test_equal_rewards_are_reported_until_they_are_the_best(
    script: list[list[float]], below: list[float], warned: list[str], mm_train: Train
) -> None:
    SCRIPT[:] = script
    run = mm_train(reward="scripted", max_steps=3, run="a")
    assert series(run, "below_best") == below and told(run) == warned


def test_the_best_reward_is_remembered_by_a_resume(mm_train: Train, plugins: PluginManager, tmp_path: Path) -> None:
    SCRIPT[:] = [[1.0, 0.0], [0.5], [0.5]]
    run = mm_train(reward="scripted", max_steps=3, stop_after_steps=1, run="a")
    run = mm.train("grpo", resume=True, run="a", workspace=tmp_path, plugins=plugins, quiet=True)
    assert series(run, "below_best") == [15 / 16, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "advised"),
    [
        ({}, "no completion has answer tags, so that every score is 0: --exact-untagged"),
        ({"exact_pattern": "answer is ([0-9]+)"}, "no completion matches --exact-pattern"),
        ({"exact_untagged": True}, ""),
    ],
)
def test_a_reward_that_finds_no_answer_says_so(options: dict[str, object], advised: str, mm_train: Train) -> None:
    rows = [{**row, "answer": "7"} for row in drawing.PROMPTS]
    run = mm_train(rows=rows, reward="exact", max_steps=3, run="a", **options)
    notes = [note for note in run.manifest["notes"] if note.startswith("reward exact: ")]
    assert len(notes) == bool(advised) and all(advised in note for note in notes)
    (flat,) = (note for note in run.manifest["notes"] if "no_spread is" in note)
    assert "the best reward is rare" not in flat
