"""The order of rows, their assignment to ranks, and what is held out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mm.core.errors import CheckpointError
from mm.runtime.data.order import RowOrder, partition, permutation, split_held_out

SEEDS = st.integers(-5, 2**70)


@given(st.integers(1, 60), SEEDS, st.integers(0, 5))
def test_an_epoch_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    order = permutation(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order.tolist() == permutation(count, seed, epoch).tolist()


def test_the_order_is_the_one_of_record() -> None:
    # a run that is resumed with another NumPy must go on in the same order: these numbers may never change
    assert permutation(10, 42, 0).tolist() == FIRST
    assert permutation(10, 42, 1).tolist() == SECOND
    assert permutation(10, 43, 0).tolist() not in (FIRST, SECOND)


FIRST = [3, 6, 8, 0, 4, 9, 7, 1, 2, 5]
SECOND = [8, 0, 1, 9, 6, 5, 3, 7, 4, 2]


def test_orders_look_random() -> None:
    first, second = permutation(2000, 1, 0), permutation(2000, 1, 1)
    for a, b in ((first, second), (first, np.arange(2000)), (first, permutation(2000, 2, 0)), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


@given(st.integers(1, 12), SEEDS, st.lists(st.integers(0, 30), max_size=6))
def test_how_rows_are_taken_does_not_matter(count: int, seed: int, takes: list[int]) -> None:
    pieces, whole = RowOrder(count, seed), RowOrder(count, seed)
    taken = [row for n in takes for row in pieces.take(n)]
    assert taken == whole.take(sum(takes))
    for start in range(0, len(taken) - count + 1, count):
        assert sorted(taken[start : start + count]) == list(range(count))


@given(st.integers(1, 12), SEEDS, st.integers(0, 40), st.integers(0, 40))
def test_resuming_equals_not_stopping(count: int, seed: int, before: int, after: int) -> None:
    straight, stopped, resumed = (RowOrder(count, seed) for _ in range(3))
    stopped.take(before)
    resumed.load_state_dict(stopped.state_dict())
    assert (straight.take(before) + resumed.take(after))[before:] == straight.take(after)
    assert resumed.state_dict() == straight.state_dict()


def test_rows_may_be_named() -> None:
    assert sorted(RowOrder([7, 3, 9], 0).take(3)) == [3, 7, 9]
    with pytest.raises(ValueError, match="no rows"):
        RowOrder([], 0)


@pytest.mark.parametrize(("order", "name"), [(RowOrder(3, 1), "seed"), (RowOrder(4, 0), "rows")])
def test_a_state_of_other_data_is_refused(order: RowOrder, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        order.load_state_dict(RowOrder(3, 0).state_dict())


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 9))
def test_ranks_share_everything_fairly(lengths: list[int], world_size: int) -> None:
    shares = partition(lengths, world_size)
    assert len(shares) == world_size
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))
    assert shares == partition(np.array(lengths, dtype=np.int64), world_size)  # type: ignore[arg-type]
    loads = [sum(lengths[i] for i in share) for share in shares]
    # list scheduling: whoever carries most was the least loaded before its last unit came
    assert max(loads) - min(loads) <= max(lengths, default=0)


def store(hashes: list[int]) -> SimpleNamespace:
    return SimpleNamespace(hashes=np.array(hashes, dtype=np.uint64))


HASHES = st.lists(st.sampled_from(range(1, 9)) | st.integers(0, 2**64 - 1), min_size=1, max_size=50)


@given(HASHES, st.floats(0, 1), SEEDS)
def test_held_out_rows_are_apart(hashes: list[int], fraction: float, seed: int) -> None:
    rows, held = split_held_out(store(hashes), fraction, seed)
    assert sorted([*rows, *held]) == list(range(len(hashes)))
    assert not {hashes[i] for i in rows} & {hashes[i] for i in held}
    assert len(rows) > 0
    assert (len(held) > 0) == (fraction > 0 and len(set(hashes)) > 1)


@given(HASHES, HASHES, SEEDS)
def test_further_rows_move_none_that_was_trained_on(hashes: list[int], more: list[int], seed: int) -> None:
    rows, _ = split_held_out(store(hashes), 0.5, seed)
    all_rows, _ = split_held_out(store(hashes + more), 0.5, seed)
    if len({hashes[i] for i in rows}) > 1:  # a single one may train only because something has to
        assert set(rows) <= set(all_rows)


def test_the_share_that_is_held_out_is_about_right() -> None:
    _, held = split_held_out(store(list(range(20000))), 0.1, 3)
    assert 1850 < len(held) < 2150
    _, other = split_held_out(store(list(range(20000))), 0.1, 4)
    assert held.tolist() != other.tolist()
