"""N ranks take the steps of one, with every algorithm, with copies of the model or parts of it. In float64, so that a difference
is a mistake and no rounding. The tolerances are in docs/distributed.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_cases import CASES, WAYS, assert_equal, prepare, run_cases
from ranks import on_ranks

# one that learns from rows, with experts, and one that draws and takes several steps of a rollout
SHORT = ("sft with experts", "grpo in mini-batches")
# three ranks: uneven parts, ranks without rows
FEW = ("sft", "sft of one row", "sft with experts", "lora of experts", "kto", "grpo in mini-batches", "ppo with experts", "spo")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace in which one rank has trained every case."""
    folder = tmp_path_factory.mktemp("one")
    prepare(folder, CASES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_cases(str(folder), "shared", *CASES)
    torch.set_num_threads(threads)
    return folder


def test_two_ranks_with_parts_of_the_model_take_the_steps_of_one(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with on_ranks(2, "rank_cases", "run_cases", tmp_path / "two", "fsdp", *SHORT):
        run_cases(str(tmp_path), "shared", *SHORT)
    for case in SHORT:
        assert_equal(tmp_path, tmp_path / "two", case.replace(" ", "-"))


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "way", "cases"), [*((2, way, tuple(CASES)) for way in WAYS), *((3, way, FEW) for way in WAYS)])
def test_every_algorithm_takes_the_steps_of_one_rank(
    ranks: int, way: str, cases: tuple[str, ...], one: Path, tmp_path: Path
) -> None:
    prepare(tmp_path, cases)
    with on_ranks(ranks, "rank_cases", "run_cases", tmp_path, way, *cases):
        pass
    for case in cases:
        assert_equal(one, tmp_path, case.replace(" ", "-"))
