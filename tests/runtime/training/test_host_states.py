"""What the ranks of a checkpoint saved is divided among any other number of ranks, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from mm.runtime.training.host_states import for_rank


@st.composite
def saved(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Host states of one to four ranks, with units that have different rows."""
    ranks, batches = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    row = 0
    states: list[dict[str, Any]] = []
    for rank in range(ranks):
        pending = []
        for _ in range(batches):
            units = []
            for length in draw(st.lists(st.integers(1, 50), max_size=4)):
                units.append({"sequences": [{"ids": [0] * length}], "row": row})
                row += 1
            pending.append(units)
        names = draw(st.sets(st.sampled_from(["loss", "largest", "reward"])))
        meter = {name: [float(rank + 1), 2.0, name == "largest"] for name in names}
        states.append({"pending": pending, "meter": meter, "rng": rank, "algorithm": "same", "feed": "same"})
    return states


@given(saved(), st.integers(1, 5))
def test_no_pending_unit_is_lost_and_each_step_has_its_own(states: list[dict[str, Any]], size: int) -> None:
    found = [for_rank(states, rank, size) for rank in range(size)]
    for step in range(len(states[0]["pending"])):
        before = sorted(unit["row"] for state in states for unit in state["pending"][step])
        assert sorted(unit["row"] for state in found for unit in state["pending"][step]) == before
    assert all(len(state["pending"]) == len(states[0]["pending"]) for state in found)


@given(saved(), st.integers(1, 5))
def test_the_metrics_of_an_interval_are_those_of_all_ranks(states: list[dict[str, Any]], size: int) -> None:
    found = [for_rank(states, rank, size)["meter"] for rank in range(size)]
    if len(states) == size:
        assert found == [state["meter"] for state in states]
        return
    assert all(meter.keys() == found[0].keys() for meter in found)
    for name in found[0]:
        every = [state["meter"][name] for state in states if name in state["meter"]]
        if name == "largest":
            assert found[0][name][0] == max(entry[0] for entry in every)
        else:
            for part in (0, 1):
                assert sum(meter[name][part] for meter in found) == sum(entry[part] for entry in every)


@pytest.mark.parametrize(("size", "expected"), [(2, [0, 1]), (1, [0]), (3, [0, 1, 1])])
def test_a_rank_goes_on_as_the_nearest_one_that_saved(size: int, expected: list[int]) -> None:
    states = [{"pending": [], "meter": {}, "rng": rank} for rank in range(2)]
    assert [for_rank(states, rank, size)["rng"] for rank in range(size)] == expected
