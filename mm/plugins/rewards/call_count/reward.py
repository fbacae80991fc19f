"""The reward `call-count`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.calls import judged_calls
from mm.plugins.rewards.matching import field_of


class CallCount(Reward):
    """MiniMind's agent figures: 0.5 for as many right calls as `gt` has values and no wrong one, else -0.5 for each that
    is missing, too many or wrong. None for a row without `gt`."""

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, text) for row, text in zip(rows, completions, strict=True)]

    def _score(self, row: Any, completion: str) -> float | None:
        expected = field_of(row, "gt")
        if not isinstance(expected, list):
            return None
        judged = judged_calls(row, completion)
        gap = abs(sum(judged) - len(expected)) + judged.count(False)
        return -0.5 * gap if gap else 0.5
