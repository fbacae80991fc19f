"""Two ranks draw what one rank draws, and learn what it learns, in one mini-batch or several.

One of these cases is trained by test_two_ranks, where two ranks run anyhow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rollout_cases import CASES, assert_equal, train_both

from mm.runtime.training.distributed import World
from mm.runtime.training.rollouts.mini_batches import assign_mini_batches


@pytest.mark.slow
def test_two_ranks_draw_and_learn_what_one_does(tmp_path: Path) -> None:
    train_both(tmp_path / "one", tmp_path / "two", CASES)
    for case in CASES:
        assert_equal(tmp_path / "one", tmp_path / "two", case)


def test_mini_batches_are_those_of_one_rank() -> None:
    """However completions lie on ranks, which of them share a step is the same, and ranks make equally many steps."""
    from types import SimpleNamespace

    class Part(World):
        def gather(self, value: Any) -> list[Any]:
            return [value, rest]

    samples: list[Any] = [SimpleNamespace(sample=SimpleNamespace(key=(0, 0, n // 3, n % 3))) for n in range(15)]
    for sample in samples:
        sample.as_unit = lambda sample=sample: sample.sample.key

    def assign(world: World, some: list[Any]) -> list[list[Any]]:
        return assign_mini_batches(some, world, passes=2, parts=4)

    whole = assign(World(), samples)
    assert [len(batch) for batch in whole] == [4, 4, 4, 3] * 2 and whole[:4] != whole[4:]
    for cut in (0, 1, 7):
        rest = [sample.sample.key for sample in samples[cut:]]
        first = assign(Part(), samples[:cut])
        rest = [sample.sample.key for sample in samples[:cut]]
        second = assign(Part(), samples[cut:])
        assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in whole]
    few = assign(World(), samples[:2])
    assert [len(batch) for batch in few] == [1, 1] * 2  # no step without any completion
