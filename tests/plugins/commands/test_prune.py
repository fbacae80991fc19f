"""`mm runs prune` removes checkpoints that nothing needs, and frees what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_files import weights
from sizes import sizes

import mm
from mm.core.locks import exclusive
from mm.core.workspace import RunFolder, Workspace, checkpoints, step_of
from mm.plugins.commands.runs.prune import size
from mm.testing import tiny_run
from mm.testing.pytest_plugin import CommandLine

ROWS = [{"text": f"number {n} " * (1 + n % 5)} for n in range(11)]
SMALL = {
    **sizes(layers=1), "max_steps": 6, "global_batch_size": 3, "rows": ROWS, "save_interval": 1, "keep_checkpoints": 9,
    "eval_ratio": 0.2, "eval_interval": 2, "keep_best": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    tiny_run(folder, "pretrain", **SMALL, run="stopped", stop_after_steps=4)
    tiny_run(folder, "pretrain", **SMALL, run="finished")
    return folder


@pytest.fixture
def workspace(trained: Path, mm_workspace: Path) -> Workspace:
    shutil.copytree(trained / "runs", mm_workspace / "runs")
    return Workspace(mm_workspace)


def steps(run: RunFolder) -> list[int]:
    return [step_of(path) for path in checkpoints(run.checkpoints)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_old_checkpoints_are_removed(workspace: Workspace, trained: Path, mm_cli: CommandLine) -> None:
    stopped, finished = workspace.existing("stopped"), workspace.existing("finished")
    before, kept = size(workspace.path), {name: weights(finished.path / name) for name in ("model", "best")}
    planned = mm_cli("runs", "prune", "--dry-run").out
    assert size(workspace.path) == before
    values = json.loads(mm_cli("runs", "prune", "--dry-run", "--json").out)
    done = mm_cli("runs", "prune").out
    assert {run["run"]: run["steps"] for run in values["runs"]} == {"stopped": [1, 2, 3], "finished": [1, 2, 3, 4, 5, 6]}
    assert values["dry_run"] and f"freed {values['bytes']:,} bytes" in done
    assert done == planned.replace("would remove", "removed").replace("would free", "freed")
    assert "stopped: removed steps 1, 2, 3, " in done and "finished: removed steps 1, 2, 3, 4, 5, 6, " in done
    assert done.splitlines()[-1].startswith(f"freed {before - size(workspace.path):,} bytes (")
    assert (steps(stopped), steps(finished)) == ([4], [])
    assert {name: weights(finished.path / name) for name in kept} == kept and stopped.best.exists()
    resumed = mm.train("pretrain", resume=True, run="stopped", workspace=workspace.path, quiet=True)
    assert weights(resumed) == weights(Workspace(trained).existing("finished"))
    assert mm_cli("generate", "finished", "one", "--max-new-tokens", "2", "--backend", "cpu").code == 0


def test_one_run_and_several_checkpoints(workspace: Workspace, mm_cli: CommandLine) -> None:
    mm_cli("runs", "prune", "stopped", "--keep", "2")
    assert (steps(workspace.existing("stopped")), steps(workspace.existing("finished"))) == ([3, 4], [1, 2, 3, 4, 5, 6])
    assert mm_cli("runs", "prune", "stopped", "--keep", "2").out == "freed 0 bytes (0.0 MiB)\n"
    assert "No run 'stoped'" in mm_cli("runs", "prune", "stoped", code=2).err
    assert "--keep" in mm_cli("runs", "prune", "--keep", "0", code=2).err


def test_a_damaged_checkpoint_is_not_what_is_kept(workspace: Workspace, mm_cli: CommandLine) -> None:
    stopped, finished = workspace.existing("stopped"), workspace.existing("finished")
    flip(stopped.checkpoints / "step-00000004/model.safetensors")
    flip(finished.model / "model.safetensors")
    assert "finished: left alone: " in mm_cli("runs", "prune").err
    assert (steps(stopped), steps(finished)) == ([3, 4], [1, 2, 3, 4, 5, 6])


def test_a_run_in_training_or_damaged_is_left_alone(workspace: Workspace, mm_cli: CommandLine) -> None:
    stopped, finished = workspace.existing("stopped"), workspace.existing("finished")
    (finished.path / "manifest.json").write_text("{")
    with exclusive(stopped.path / ".lock", "busy"):
        for words in ([], ["stopped", "finished"], ["--dry-run"]):
            said = mm_cli("runs", "prune", *words)
            assert "stopped: left alone: in training" in said.err and "finished: left alone: " in said.err
            assert "freed 0 bytes" in said.out.replace("would free", "freed")
    assert (len(steps(stopped)), len(steps(finished))) == (4, 6)


def test_a_checkpoint_that_another_run_needs_is_kept(workspace: Workspace, mm_cli: CommandLine) -> None:
    for name in ("finished@2", "runs/finished/checkpoints/step-00000005"):
        copy = RunFolder(Path(shutil.copytree(workspace.path / "runs/stopped", workspace.path / f"runs/from {name[-1]}")))
        text = (copy.path / "run.toml").read_text()
        (copy.path / "run.toml").write_text(text.replace('from = ""', f'from = "{name}"'))
    mm_cli("runs", "prune", "finished")
    assert steps(workspace.existing("finished")) == [2, 5]
