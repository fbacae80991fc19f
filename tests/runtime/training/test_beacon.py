"""A rank's place, as its launcher reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm.runtime.training.beacon import Beacon, read_place


def test_the_place_is_the_innermost_part_and_the_collective(tmp_path: Path) -> None:
    path = tmp_path / "rank-0"
    beacon = Beacon(path)
    assert read_place(path) is None and read_place(tmp_path / "missing") is None
    beacon.step(7)
    with beacon.part("evaluation"), beacon.part("forward"):
        place = read_place(path)
        assert place and (place.step, place.part, place.collective) == (7, "forward", "")
        with beacon.collective("sum of gradients"):
            assert str(read_place(path)) == "in step 7, forward, waiting for the other ranks in: sum of gradients"
    with beacon.part("数据" * 400):  # a long text is cut, at any byte
        cut = read_place(path)
        assert cut and cut.part.startswith("数据") and cut.changes > place.changes


def test_the_collective_that_fails_is_kept(tmp_path: Path) -> None:
    beacon = Beacon(tmp_path / "rank-1")
    with pytest.raises(RuntimeError), beacon.collective("maximum"):
        raise RuntimeError
    place = read_place(tmp_path / "rank-1")
    assert place and str(place) == "before the first step, waiting for the other ranks in: maximum"
