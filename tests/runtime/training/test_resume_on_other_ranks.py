"""A run that stops between two mini-batches goes on, on fewer ranks, more, or with models that are kept in another way, with the
same rows in the same steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_cases import assert_equal, model, train
from ranks import on_ranks

# (the ranks that stop and how they train, the ones that go on)
CHANGES = {
    "2-to-1": ((2, "fsdp"), (1, "shared")), "1-to-2": ((1, "shared"), (2, "fsdp")), "2-to-3": ((2, "fsdp"), (3, "fsdp")),
    "parts-to-copies": ((2, "fsdp"), (2, "shared")), "copies-to-parts": ((2, "shared"), (2, "fsdp")),
    "3-to-2": ((3, "fsdp"), (2, "fsdp")), "copies-2-to-3": ((2, "shared"), (3, "shared")),
}  # fmt: skip
SAME = "parts-to-parts"
CASES = ("sft with dropout", "grpo in mini-batches", "ppo", "lora", "sft with experts")
# float32, whose sums come in another order
TOLERANCE = 1e-5


def name(case: str, change: str) -> str:
    """The run's."""
    return f"{case} {change}".replace(" ", "-")


def attempts(when: int, ranks: int) -> list[tuple[str, str]]:
    """(change, how they train) of the runs that so many ranks begin (`when` is 0) or continue (1)."""
    every = {**CHANGES, SAME: ((2, "fsdp"), (2, "fsdp"))}
    return [(change, sides[when][1]) for change, sides in every.items() if sides[when][0] == ranks]


def stop(folder: str, ranks: str) -> None:
    """What as many ranks do that stop."""
    torch.set_num_threads(1)
    for case in CASES:
        for change, way in attempts(0, int(ranks)):
            train(Path(folder), case, way, run=name(case, change), stop_after_steps=2)
        if ranks != "3":
            train(Path(folder), case, "fsdp", run=name(case, f"unbroken-{ranks}"))


def go_on(folder: str, ranks: str) -> None:
    """What as many ranks do that go on."""
    torch.set_num_threads(1)
    for case in CASES:
        for change, way in attempts(1, int(ranks)):
            train(Path(folder), case, way, run=name(case, change), resume=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace in which all of them have trained."""
    found = tmp_path_factory.mktemp("ranks")
    for function, own in (("stop", stop), ("go_on", go_on)):
        with on_ranks(2, "test_resume_on_other_ranks", function, found, "2"):
            own(str(found), "1")
        with on_ranks(3, "test_resume_on_other_ranks", function, found, "3"):
            pass
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_with_the_same_steps(case: str, change: str, folder: Path) -> None:
    assert_equal(folder, folder, name(case, "unbroken-1"), TOLERANCE, other=name(case, change))


@pytest.mark.ranks
@pytest.mark.parametrize("case", CASES)
def test_as_many_ranks_go_on_to_the_bit(case: str, folder: Path) -> None:
    unbroken, same = (model(folder, name(case, change)) for change in ("unbroken-2", SAME))
    assert unbroken.keys() == same.keys() and all(unbroken[tensor].equal(same[tensor]) for tensor in unbroken)
