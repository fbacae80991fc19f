"""Metrics between two log lines: means and the largest, over packs, ranks and a stop."""

from __future__ import annotations

from typing import Any

import torch

from mm.contracts import Largest
from mm.runtime.training.distributed import World
from mm.runtime.training.metrics import Meter


class Second(World):
    """A rank beside one that had empty packs only."""

    def sum(self, values: Any) -> dict[str, float]:
        return dict(values)

    def gather(self, value: Any) -> list[Any]:
        return [{name: (0.0, 0.0) for name in value}, value]


def metered(*packs: tuple[list[float], float]) -> Meter:
    """Gaps of some packs of tokens; an empty pack gives its name only."""
    meter = Meter()
    for gaps, extra in packs:
        each = torch.tensor(gaps)
        largest = Largest(each.max() if gaps else each.sum(), float(len(gaps)))
        meter.add({"gap": (each.sum(), float(len(gaps))), "gap_max": largest, "extra": (torch.tensor(extra), 1.0)})
    return meter


def test_the_largest_does_not_depend_on_how_a_step_was_cut() -> None:
    whole = metered(([-3.0, -1.0, -2.0, -4.0], 6.0)).read(World())
    cut = metered(([-3.0], 3.0), ([], 9.0), ([-1.0, -2.0], 6.0), ([-4.0], 6.0)).read(World())
    assert whole == cut == {"gap": -2.5, "gap_max": -1.0, "extra": 6.0}


def test_the_largest_is_that_of_all_ranks_and_of_no_empty_one() -> None:
    meter = metered(([-3.0, -5.0], 1.0))
    assert meter.read(Second()) == {"gap": -4.0, "gap_max": -3.0, "extra": 1.0}
    assert meter.read(World()) == {}  # it has begun anew
    assert "gap_max" not in metered(([], 1.0)).read(World())


def test_a_stop_between_two_lines_loses_nothing() -> None:
    before, after = metered(([0.5, 2.0], 1.0)), metered(([1.0], 2.0))
    after.load_state_dict(before.state_dict(), torch.device("cpu"))
    after.add({"gap": (torch.tensor(1.0), 1.0), "gap_max": Largest(torch.tensor(1.0), 1.0), "extra": (torch.tensor(3.0), 1.0)})
    assert after.read(World()) == {"gap": 3.5 / 3, "gap_max": 2.0, "extra": 2.0}
