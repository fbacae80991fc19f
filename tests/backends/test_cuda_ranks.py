"""Two ranks on two cards take the steps of one, with every algorithm, in float64; and as users start them, by `--nproc 2`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_card import ALGORITHMS, DEVICE, run_cases
from rank_cases import assert_equal, prepare
from ranks import on_ranks
from run_files import write_rows
from training_rows import DATA

from mm.runtime.devices.backend import Backend

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def two_cards(card: Backend) -> None:
    """Skips without two of them."""
    if card.ranks() < 2:
        pytest.skip(f"two ranks need two devices of {card.name}, and {card.ranks()} is here")


@pytest.fixture(scope="module")
def one(two_cards: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace in which one rank has trained every algorithm."""
    folder = tmp_path_factory.mktemp("one")
    prepare(folder, ALGORITHMS)
    run_cases(str(folder), "shared", *ALGORITHMS)
    return folder


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_every_algorithm_takes_the_steps_of_one_rank(way: str, one: Path, tmp_path: Path) -> None:
    prepare(tmp_path, ALGORITHMS)
    with on_ranks(2, "on_card", "run_cases", tmp_path, way, *ALGORITHMS):
        pass
    for algo in ALGORITHMS:
        assert_equal(one, tmp_path, algo)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_nproc_2_trains_and_resumes(way: str, two_cards: None, tmp_path: Path) -> None:
    """In float32, whose products are TF32 on a card. A resume continues at the step that was saved."""
    write_rows(tmp_path / "rows.jsonl", DATA["chat"])
    sft = (
        "--algo sft --arch dense --preset tiny --data rows.jsonl --max-steps 4 --global-batch-size 5 --log-interval 1 "
        f"--eval-ratio 0 --dtype fp32 --backend {DEVICE}"
    )

    def trained(run: str, *words: str, line: str = sft) -> list[float]:
        environ = {**os.environ, "MM_WORKSPACE": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mm", "train", *line.split(), "--run", run, *words]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        texts = (tmp_path / f"runs/{run}/metrics.jsonl").read_text().splitlines()
        return [json.loads(text)["loss"] for text in texts if "learning_rate" in text]

    two = ("--nproc=2", f"--parallel={way}")
    expected = pytest.approx(trained("alone"), rel=5e-3)
    assert trained("both", *two) == expected
    assert json.loads((tmp_path / "runs/both/manifest.json").read_text())["world_size"] == 2
    trained("cut", *two, "--stop-after-steps=2")
    assert trained("cut", "--nproc=2", line="--resume") == expected
