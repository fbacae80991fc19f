"""Models of which each rank keeps a part: what it keeps, what one rank writes for all, and what is said when a step fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import assert_near, logs, model, train
from ranks import two_ranks
from torch.distributed.tensor import DTensor

from mm.core.callback import Callback, TrainingView
from mm.core.errors import MMError, UsageError
from mm.core.hooks import hookimpl
from mm.core.run import Run
from mm.runtime.training.memory import memory_report

WATCHED = {"samples": 2, "sample_tokens": 4, "keep_best": True, "patience": 3, "eval_interval": 1}
# the case, and further settings; in float64 where nothing else is said
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "watched": ("sft", WATCHED), "adapted": ("lora", WATCHED), "drawn": ("grpo", WATCHED),
    "foreground": ("sft", {"background_save": False, "save_interval": 1}),
}  # fmt: skip
# (the case, settings, the largest difference of a weight): both round on the way, and Adam and Muon take steps of one size
ROUNDED: dict[str, tuple[str, dict[str, Any], float]] = {
    "bf16": ("sft", {"dtype": "bf16"}, 2e-3), "bf16-experts": ("sft with experts", {"dtype": "bf16"}, 5e-3),
    "bf16-drawn": ("grpo", {"dtype": "bf16"}, 5e-3), "muon": ("sft", {"optimizer": "muon"}, 5e-4),
    "muon-experts": ("sft with experts", {"optimizer": "muon"}, 5e-4),
}  # fmt: skip


class Keeps(Callback):
    """Writes down what this rank keeps of the model after the last step, and its report of memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        state: Any = run
        parameters = [p for role in state.roles.values() if role.trainable for p in role.model.parameters()]
        moments = [value for o in state.updates.optimizers["policy"] for s in o.state.values() for value in s.values()]
        held = [t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in (*parameters, *moments)]
        kept = {"whole": sum(p.numel() for p in parameters), "held": sum(held), "memory": memory_report(state)}
        (self.folder / f"keeps.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(kept))


@hookimpl
def mm_callbacks(run: Run) -> list[Callback]:
    """One callback, on every rank."""
    return [Keeps(Path(os.environ["MM_TEST_FOLDER"]))] if run.select.run == "watched" else []


def rank_main(folder: str, way: str) -> None:
    """What each rank does."""
    torch.set_num_threads(1)
    workspace = Path(folder)
    os.environ["MM_TEST_FOLDER"] = folder
    for run, (case, options) in RUNS.items():
        train(workspace, case, way, "test_sharding", run=run, backend="wide", **options)
    for run, (case, options, _) in ROUNDED.items():
        train(workspace, case, way, "test_sharding", run=run, **options)
    with pytest.raises(MMError) as error:
        train(workspace, "sft", way, "test_sharding", run="diverged", learning_rate=1e30)
    (workspace / f"diverged.{os.environ.get('RANK', '0')}").write_text(str(error.value))
    if way == "fsdp":
        with pytest.raises(UsageError, match="--parallel fsdp cannot scale the loss, as --dtype fp16 needs it"):
            train(workspace, "sft", way, "test_sharding", run="scaled", dtype="fp16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Workspaces in which one rank and two ranks with parts have done the same; both at the same time."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with two_ranks("test_sharding", "rank_main", two, "fsdp"):
        rank_main(str(one), "shared")
    return one, two


@pytest.mark.parametrize("run", RUNS)
def test_what_one_rank_writes_is_the_whole_model(run: str, folders: tuple[Path, Path]) -> None:
    one, two = folders
    for folder in ("model", "best") if RUNS[run][1] is WATCHED else ("model",):
        assert_near(model(two, run, folder), model(one, run, folder), 1e-10, run)
    newest = max(path.name for path in (two / f"runs/{run}/checkpoints").iterdir())
    assert_near(model(two, run, f"checkpoints/{newest}"), model(one, run, f"checkpoints/{newest}"), 1e-10, run)
    if RUNS[run][1] is WATCHED:
        assert len({(folder / f"runs/{run}/samples.jsonl").read_text() for folder in folders}) == 1


@pytest.mark.parametrize("run", ROUNDED)
def test_half_precision_and_muon_are_near(run: str, folders: tuple[Path, Path]) -> None:
    one, two = folders
    assert_near(model(two, run), model(one, run), ROUNDED[run][2], run)
    for line, other in zip(logs(one, run), logs(two, run), strict=True):
        assert line.keys() == other.keys()
        if "loss" in line:
            assert other["loss"] == pytest.approx(line["loss"], rel=2e-2, abs=2e-2)


def test_a_rank_keeps_its_part(folders: tuple[Path, Path]) -> None:
    files = folders[0] / "keeps.0.json", *(folders[1] / f"keeps.{rank}.json" for rank in (0, 1))
    alone, *ranks = (json.loads(file.read_text()) for file in files)
    assert ranks[0]["whole"] == alone["whole"]
    steps = alone["held"] - 3 * alone["whole"]  # each parameter's count of steps is a number that every rank has
    assert sum(rank["held"] - steps for rank in ranks) == 3 * alone["whole"]
    assert all(rank["held"] < 0.6 * alone["held"] for rank in ranks)
    assert all("optimizer state" in rank["memory"] for rank in ranks)


def test_a_step_that_fails_is_explained_on_every_rank(folders: tuple[Path, Path]) -> None:
    texts = [(folders[1] / f"diverged.{rank}").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    alone = (folders[0] / "diverged.0").read_text()
    assert texts[0].split(" (rows")[0] == alone.split(" (rows")[0]
    assert "non-finite gradient" in alone and "(rows " in texts[0]
