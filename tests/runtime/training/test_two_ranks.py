"""Two ranks learn what one rank learns from the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rollout_cases
import torch
from ranks import two_ranks
from run_files import lines, write_rows
from safetensors.torch import load_file
from sessions import built
from sizes import sizes

from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.errors import StorageError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.workspace import Workspace
from mm.runtime.training import checkpoint, saver
from mm.testing import plugin_manager, tiny_run, tiny_tokenizer

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"number {n} " * (1 + n * n % 7)}]}
    for n in range(11)
]  # fmt: skip
SMALL = {"max_steps": 4, "max_length": 128, "log_interval": 1, "learning_rate": 1e-2, "micro_batch_tokens": 48}
DENSE = {"arch": "dense", "preset": "tiny", **sizes()}
# experts divide their auxiliary loss by what all ranks have
EXPERTS = {"arch": "moe", "preset": "tiny", "moe_router_aux_loss_coef": 1.0, **sizes("moe")}
# rows a step: micro-batches on the ranks are uneven; one row leaves a rank without any
BATCHES = (7, 1)
# drawn by an algorithm, and dealt to several steps
DRAWING = "grpo in mini-batches"


def gradients(workspace: Path, batch: int, arch: str) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The gradient of the first step, before clipping, and the micro-batches that this rank had of its own."""
    given = {**SMALL, **(DENSE if arch == "dense" else EXPERTS), "algo": "sft", "global_batch_size": batch}
    given |= {"tokenizer": workspace / "tokenizer", "data": workspace / "rows.jsonl"}
    trainer = built(PluginManager.discover(environ={}), workspace, **given).trainer
    units = trainer.state.feed.next()
    trainer.state.updates.apply = lambda step, horizon: {}  # type: ignore[method-assign]  # keep the gradients
    trainer.train_step(units)
    parameters = trainer.state.roles["policy"].model.named_parameters()
    return {name: p.grad for name, p in parameters if p.grad is not None}, [len(trainer.state.micro_batches(units))]


def runs(workspace: Path) -> None:
    """A run without a stop, and one with; a single held-out row leaves a rank without any."""
    train = lambda **options: tiny_run(workspace, "sft", rows=ROWS, **SMALL | DENSE | options)  # noqa: E731
    held = {"eval_ratio": 0.2, "eval_rows": 1, "global_batch_size": 3, "eval_interval": 2}
    train(run="whole", **held)
    train(run="stopped", stop_after_steps=2, save_interval=1, **held)
    train(run="stopped", resume=True, save_interval=1, **held)
    train(run="single", global_batch_size=1)
    dropping = {"global_batch_size": 3, "eval_ratio": 0.0, "dropout": 0.3}
    train(run="dropped", **dropping)
    train(run="dropped and stopped", stop_after_steps=2, **dropping)
    train(run="dropped and stopped", resume=True, **dropping)
    # ends at its second evaluation; a rank alone writes the samples and the best model
    ending = {**held, "patience": 1, "min_delta": 100.0, "keep_best": True, "samples": 1, "sample_tokens": 4, "eval_interval": 1}
    train(run="ended", **ending, stop_after_steps=1)
    train(run="ended", **ending, resume=True)
    train(run="asked", plugins=plugin_manager(__name__), eval_interval=100)
    failed(train)


def failed(train: Callable[..., Any]) -> None:
    """A run whose second checkpoint cannot be written by the rank that writes: every rank hears of it at the same step,
    though the thread of the last one ends when the others have long known it."""
    seal, write, start = checkpoint.seal, checkpoint.write, saver.Saver.start

    def full(folder: Path) -> None:
        if "00000002" in folder.name:
            raise OSError(28, "No space left on device")
        seal(folder)

    def late(snapshot: checkpoint.Snapshot, *arguments: Any) -> Path:
        try:
            return write(snapshot, *arguments)
        finally:
            time.sleep(1.0 if os.environ.get("RANK") == "1" and snapshot.step == 2 else 0)

    def awaited(self: saver.Saver, run: TrainingView) -> None:
        start(self, run)
        while run.world.size > 1 and run.world.main and run.step == 2 and not self.failed:
            time.sleep(0.01)

    checkpoint.seal, saver.write, saver.Saver.start = full, late, awaited  # type: ignore[method-assign]
    with pytest.raises(StorageError, match=r"Step 2 could not be saved.*No space left on device.*step-00000001"):
        train(run="full", save_interval=1)
    checkpoint.seal, saver.write, saver.Saver.start = seal, write, start  # type: ignore[method-assign]


class AsksAlone(Callback):
    """Wants to stop after the second step, on the last rank only."""

    def on_step(self, run: TrainingView) -> None:
        if run.step == 2 and run.world.rank == run.world.size - 1:
            run.stop.ask("the last rank wants it")


@hookimpl
def mm_callbacks(run: Run) -> list[Callback]:
    """One callback, on every rank."""
    return [AsksAlone()]


def rank_main(folder: str) -> None:
    """What each rank does, in a process of its own."""
    workspace = Path(folder)
    found = {(batch, arch): gradients(workspace, batch, arch) for batch in BATCHES for arch in ("dense", "moe")}
    torch.save(found, workspace / f"rank{os.environ.get('RANK', '0')}.pt")
    runs(workspace)
    rollout_cases.run_cases(folder, DRAWING)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Workspaces in which one rank and two ranks have done the same; both at the same time."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in (one, two):
        (folder / "tokenizer").mkdir()
        tiny_tokenizer().save(folder / "tokenizer")
        write_rows(folder / "rows.jsonl", ROWS)
    with two_ranks("test_two_ranks", "rank_main", two):
        rank_main(str(one))
    return one, two


@pytest.mark.parametrize("arch", ["dense", "moe"])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_gradient_is_one_ranks(batch: int, arch: str, folders: tuple[Path, Path]) -> None:
    alone = torch.load(folders[0] / "rank0.pt")[batch, arch]
    ranks = [torch.load(folders[1] / f"rank{r}.pt")[batch, arch] for r in (0, 1)]
    assert (sorted(count for _, (count,) in ranks) == [0, 1]) if batch == 1 else ranks[0][1] != ranks[1][1]
    for gradient, _ in ranks:
        assert gradient.keys() == alone[0].keys()
        for name, expected in alone[0].items():
            assert expected.abs().max() > 0
            torch.testing.assert_close(gradient[name], expected, atol=1e-6, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("run", ["whole", "single", "dropped"])  # the masks of dropout are those of the documents
def test_the_same_is_logged_and_learned(run: str, folders: tuple[Path, Path]) -> None:
    alone, both = (lines(Workspace(folder).run(run)) for folder in folders)
    assert [row.keys() for row in alone] == [row.keys() for row in both]
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in zip(alone, both, strict=True))
    # what is counted, not measured, is the same to the bit
    assert [row.get("tokens") for row in alone] == [row.get("tokens") for row in both]
    one, two = (load_file(folder / f"runs/{run}/model/model.safetensors") for folder in folders)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3)


def test_a_save_that_fails_on_one_rank_ends_all(folders: tuple[Path, Path]) -> None:
    for folder in folders:  # that each rank raised is asserted where it ran
        assert [p.name for p in (folder / "runs/full/checkpoints").iterdir()] == ["step-00000001"]
        assert "could not be saved" in json.loads((folder / "runs/full/manifest.json").read_text())["error"]


@pytest.mark.parametrize(("whole", "stopped"), [("whole", "stopped"), ("dropped", "dropped and stopped")])
def test_two_ranks_resume_to_the_bit(whole: str, stopped: str, folders: tuple[Path, Path]) -> None:
    models = [folders[1] / f"runs/{name}/model/model.safetensors" for name in (whole, stopped)]
    assert models[0].read_bytes() == models[1].read_bytes()
    manifest = json.loads((folders[1] / f"runs/{stopped}/manifest.json").read_text())
    assert (manifest["world_size"], manifest["state"]) == (2, "finished")


def test_two_ranks_agree_when_to_stop(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        ended, asked = (json.loads((folder / f"runs/{run}/manifest.json").read_text()) for run in ("ended", "asked"))
        assert (ended["state"], ended["step"], ended["steps"], ended["best"]["step"]) == ("finished", 2, 4, 2)
        assert ended["stop_reason"].startswith("early stopping: ")
        assert (asked["state"], asked["step"], asked["stop_reason"]) == ("stopped", 3, "the last rank wants it")
    samples = [(folder / "runs/ended/samples.jsonl").read_text().splitlines() for folder in folders]
    assert [json.loads(line)["step"] for line in samples[1]] == [0, 1, 2] and len(samples[0]) == 3


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path: Path) -> None:
    """As the guide says, with the two dashes; one rank alone tells of the run."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    line = "--nproc-per-node 2 -m mm -- train --algo sft --arch dense --preset tiny --data rows.jsonl --max-steps 2 --run here"
    environ = {**os.environ, "MM_WORKSPACE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", *line.split(), "--backend", "cpu", "--threads", "1"]
    found = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("run: ") == 1 and found.stderr.count("chat units") == 1
    assert json.loads((tmp_path / "runs/here/manifest.json").read_text())["world_size"] == 2


def test_two_ranks_draw_and_learn_what_one_does(folders: tuple[Path, Path]) -> None:
    rollout_cases.assert_equal(*folders, DRAWING)
